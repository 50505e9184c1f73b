"""Batches to the device: the next copy runs on a stream of its own while this batch is used.

Without CUDA the same code path hands the batch through. Blocks may be lent: each is given back when
its copy is done, the oldest first, and a batch on a device keeps nothing of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from streamshard.stream.batch import batch_of
from streamshard.stream.block import Block

Tag = TypeVar("Tag")
LENT = 2  # blocks that are lent at once: one under way, and the one copied ahead


def copies(device: torch.device | None) -> bool:
    """Whether batches for a device are copies of their blocks."""
    return device is not None and device.type != "cpu"


def to_device(
    blocks: Iterator[tuple[Block, Tag]],
    device: torch.device | None,
    give_back: Callable[[], None],
) -> Generator[tuple[Any, Tag], None, None]:
    """Turn blocks into batches whose tensors are on the device.

    Args:
        blocks: Blocks, each with whatever belongs to it.
        device: Where to; None and a CPU leave them where they are.
        give_back: Called once for every block that was copied, when it may be written again.

    Yields:
        The batch, and what belonged to its block.
    """
    if device is None or not copies(device):
        for block, tag in blocks:
            yield batch_of(block), tag
    elif device.type == "cuda":
        yield from _overlapped(blocks, device, give_back)
    else:
        for block, tag in blocks:
            batch = batch_of(block, block.memory.to(device))
            give_back()
            yield batch, tag


class _Copy(NamedTuple, Generic[Tag]):
    """A copy under way: from where, to where, and what tells that it is done."""

    block: Block
    memory: torch.Tensor
    done: torch.cuda.Event
    tag: Tag


def _overlapped(
    blocks: Iterator[tuple[Block, Tag]], device: torch.device, give_back: Callable[[], None]
) -> Iterator[tuple[Any, Tag]]:
    """One copy ahead, on a side stream."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    under_way: deque[_Copy[Tag]] = deque()
    try:
        for block, tag in blocks:
            under_way.append(_begun(block, device, side, tag))
            if len(under_way) == LENT:
                yield _arrived(under_way, device, give_back)
        while under_way:
            yield _arrived(under_way, device, give_back)
    finally:  # broken off: what is being read must not be written
        for copy in under_way:
            copy.done.synchronize()
            give_back()


def _begun(block: Block, device: torch.device, side: torch.cuda.Stream, tag: Tag) -> _Copy[Tag]:
    """Begin the copy of a block; pages that are locked already are not pinned once more."""
    pinned = block.memory.pin_memory()
    with torch.cuda.stream(side):
        memory = pinned.to(device, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(side)
    return _Copy(block, memory, done, tag)


def _arrived(
    under_way: deque[_Copy[Tag]], device: torch.device, give_back: Callable[[], None]
) -> tuple[Any, Tag]:
    """The oldest batch, on the device, in the order of the stream that will use it."""
    block, memory, done, tag = under_way[0]
    current = torch.cuda.current_stream(device)
    current.wait_event(done)
    # Made on the side stream: the allocator must not give it out again while this one reads it.
    memory.record_stream(current)
    batch = batch_of(block, memory)
    done.synchronize()  # begun one batch ago, so there is seldom anything to wait for
    under_way.popleft()
    give_back()
    return batch, tag
