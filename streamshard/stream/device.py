"""Batches to the device: the next copy runs on a stream of its own while this batch is used.

Without CUDA the same code path hands the batch through. Blocks may be lent: each is given back when
its copy is done, the oldest first, and a batch on a device keeps nothing of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch

from streamshard.errors import UsageError
from streamshard.stream.block import Block

Tag = TypeVar("Tag")
LENT = 2  # blocks that are lent at once: one under way, and the one copied ahead

# A block, and its copy on the device where there is one, to the batch, and to what was made for it
# besides the copy.
Arrive = Callable[[Block, torch.Tensor | None], tuple[Any, list[torch.Tensor]]]


class Mark(Protocol):
    """A point in the work of a side stream."""

    def synchronize(self) -> None:
        """Wait until that work is done."""


class Side(Protocol):
    """A stream of work beside the one that uses the batches; its work is done in order."""

    def copy(self, memory: torch.Tensor) -> torch.Tensor:
        """Begin to copy memory of the host to the device."""

    def working(self) -> AbstractContextManager[Any]:
        """Inside, what is asked of the device is work of this stream."""

    def mark(self) -> Mark:
        """The end of what was begun so far."""

    def hand_over(self, mark: Mark, tensors: Iterable[torch.Tensor]) -> None:
        """Let whoever asks the device next find the work up to a mark done.

        Args:
            mark: Of this stream.
            tensors: What was made here and is used there.
        """

    def settle(self) -> None:
        """Wait until all is done that was begun."""


class CudaSide:
    """A side stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream.

        Raises:
            UsageError: There is no such GPU.
        """
        there = torch.cuda.device_count()
        if there <= (device.index or 0):
            raise UsageError(
                f"device is {str(device)!r}, and torch finds {there} CUDA devices here; "
                "device=None leaves batches where they are made"
            )
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def copy(self, memory: torch.Tensor) -> torch.Tensor:
        """See `Side`; pages that are locked already are not pinned once more."""
        with self.working():
            return memory.pin_memory().to(self._device, non_blocking=True)

    def working(self) -> AbstractContextManager[Any]:
        """See `Side`."""
        stream: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return stream

    def mark(self) -> Mark:
        """See `Side`."""
        event: torch.cuda.Event = self._stream.record_event()
        return event

    def hand_over(self, mark: Any, tensors: Iterable[torch.Tensor]) -> None:
        """See `Side`."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(mark)
        # Made on the side stream: the allocator must not give their memory out again there while
        # the other stream still reads it.
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(current)

    def settle(self) -> None:
        """See `Side`."""
        self._stream.synchronize()


_SIDES: dict[str, Callable[[torch.device], Side]] = {"cuda": CudaSide}


def copies(device: torch.device | None) -> bool:
    """Whether batches for a device are copies of their blocks."""
    return device is not None and device.type != "cpu"


def to_device(
    blocks: Iterator[tuple[Block, Tag]],
    device: torch.device | None,
    give_back: Callable[[], None],
    arrive: Arrive,
) -> Generator[tuple[Any, Tag], None, None]:
    """Turn blocks into batches whose tensors are on the device.

    Args:
        blocks: Blocks, each with whatever belongs to it.
        device: Where to; None and a CPU leave them where they are.
        give_back: Called once for every block that was copied, when it may be written again.
        arrive: What becomes of a block where it has arrived.

    Yields:
        The batch, and what belonged to its block.
    """
    if device is None or not copies(device):
        for block, tag in blocks:
            yield arrive(block, None)[0], tag
    elif device.type in _SIDES:
        yield from _overlapped(blocks, _Ahead(_SIDES[device.type](device), give_back, arrive))
    else:
        for block, tag in blocks:
            try:
                batch = arrive(block, block.moving.to(device))[0]
            finally:
                give_back()
            yield batch, tag


def _overlapped(
    blocks: Iterator[tuple[Block, Tag]], ahead: _Ahead[Tag]
) -> Iterator[tuple[Any, Tag]]:
    """One copy ahead; of an error, what was copied before it is delivered first, as without."""
    failed: Exception | None = None
    try:
        while failed is None:
            try:
                ahead.begin(*next(blocks))
            except StopIteration:
                break
            except Exception as error:
                failed = error
            else:
                if len(ahead.under_way) == LENT:
                    yield ahead.take()
        while ahead.under_way:
            yield ahead.take()
        if failed is not None:
            raise failed
    finally:
        ahead.end()


class _Copy(NamedTuple, Generic[Tag]):
    """A batch under way.

    Attributes:
        block: From where; what is copied must stay mapped.
        batch: What it will be.
        tensors: What it is made of.
        copied: When the block was read.
        ready: When the batch is what it will be.
        tag: What belongs to the block.
    """

    block: Block
    batch: Any
    tensors: list[torch.Tensor]
    copied: Mark
    ready: Mark
    tag: Tag


class _Ahead(Generic[Tag]):
    """Batches that are under way on a side stream, the oldest first."""

    def __init__(self, side: Side, give_back: Callable[[], None], arrive: Arrive) -> None:
        self._side, self._give_back, self._arrive = side, give_back, arrive
        self.under_way: deque[_Copy[Tag]] = deque()
        self._lent = 0  # blocks that were not given back, also those that came to nothing

    def begin(self, block: Block, tag: Tag) -> None:
        """Begin the copy of a block, and what is to be done to it."""
        self._lent += 1
        memory = self._side.copy(block.moving)
        copied = self._side.mark()
        with self._side.working():
            batch, made = self._arrive(block, memory)
        tensors = [memory, *made]
        self.under_way.append(_Copy(block, batch, tensors, copied, self._side.mark(), tag))

    def take(self) -> tuple[Any, Tag]:
        """The oldest batch, in the order of the stream that will use it."""
        copy = self.under_way.popleft()
        self._side.hand_over(copy.ready, copy.tensors)
        copy.copied.synchronize()  # begun one batch ago, so there is seldom anything to wait for
        self._lent -= 1
        self._give_back()
        return copy.batch, copy.tag

    def end(self) -> None:
        """Give back what is left, also after an error: what is being read must not be written."""
        self._side.settle()
        for _ in range(self._lent):
            self._give_back()
        self.under_way.clear()
        self._lent = 0
