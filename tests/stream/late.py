"""A side stream without a GPU, as late as a GPU may be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

UNWRITTEN = 0xAB  # what memory on the "device" holds before the copy to it is done


class LateMark:
    """The end of some of the work."""

    def __init__(self, side: LateSide, number: int) -> None:
        self.side, self.number = side, number

    def synchronize(self) -> None:
        self.side.do(self.number)


class LateSide:
    """Puts all work off until somebody waits for it, and then does it in order.

    A test calls `used` in place of the stream that uses the batches: it does what that stream was
    told to wait for, and nothing more. What it was not told of still holds `UNWRITTEN`, or is
    copied from memory that has been written again.

    Attributes:
        handed_over: What was with the last batch.
        torn: Copies of memory that was written again before they were done.
    """

    def __init__(self) -> None:
        self._work: list[Callable[[], Any]] = []
        self._done = 0
        self._waited_for = 0
        self.handed_over: list[torch.Tensor] = []
        self.torn = 0

    def copy(self, memory: torch.Tensor) -> torch.Tensor:
        there, before = torch.full_like(memory, UNWRITTEN), memory.clone()

        def later() -> None:
            there.copy_(memory)
            self.torn += not torch.equal(there, before)

        self._work.append(later)
        return there

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with _PutOff(self._work):
            yield

    def mark(self) -> LateMark:
        return LateMark(self, len(self._work))

    def hand_over(self, mark: Any, tensors: Iterable[torch.Tensor]) -> None:
        self._waited_for = max(self._waited_for, mark.number)
        self.handed_over = list(tensors)

    def settle(self) -> None:
        self.do(len(self._work))

    def do(self, until: int) -> None:
        """Do the work up to a mark."""
        while self._done < until:
            self._work[self._done]()
            self._work[self._done] = lambda: None  # and hold nothing that it needed
            self._done += 1

    def used(self) -> None:
        """What was handed over is used now."""
        self.do(self._waited_for)


class _PutOff(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations are noted, and done (again) when their time has come."""

    def __init__(self, work: list[Callable[[], Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))  # now, for what it looks like
        if func is torch.ops.aten.set_.source_Storage_storage_offset or not any(
            isinstance(argument, torch.Tensor) for argument in args
        ):
            return result  # a place in memory, not what lies there

        def later() -> None:
            again = func(*args, **(kwargs or {}))
            if isinstance(again, torch.Tensor) and again.data_ptr() != result.data_ptr():
                result.copy_(again)

        self._work.append(later)
        return result
