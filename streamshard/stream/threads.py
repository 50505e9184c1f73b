"""Threads that read and decode samples; each of torch's operations takes its own thread alone."""

from __future__ import annotations

import ctypes
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

_JOIN_SECONDS = 5.0
_ENDED = "the threads were ended"

logger = logging.getLogger("streamshard")

T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """The builtin `map`, or one whose work is begun at once and done by others."""

    def __call__(self, function: Callable[[T], R], things: Sequence[T], /) -> Iterator[R]:
        """What the function makes of each, in their order."""


@contextmanager
def alone() -> Iterator[None]:
    """Torch's operations take no other threads than this one, and nothing else is changed.

    `torch.set_num_threads` would also set how many threads the operations of all threads to come
    take. OpenMP's own function sets it for the thread that calls it (OpenMP 5.2, section 18.2.1).
    """
    usual = torch.get_num_threads()  # of this thread; and settles it, so that torch leaves it alone
    _take_threads(1)
    try:
        yield
    finally:
        _take_threads(usual)


def _openmp() -> Callable[[int], Any]:
    """`omp_set_num_threads` of the library that torch uses; nothing where it uses none."""
    try:
        function = ctypes.CDLL(torch._C.__file__).omp_set_num_threads
    except (OSError, AttributeError):
        return lambda _: None
    function.restype = None
    return function


_take_threads = _openmp()


class OwnThread(threading.Thread):
    """One of our threads, begun; it does not keep its process from ending."""

    def __init__(self, run: Callable[[], None], name: str) -> None:
        super().__init__(target=run, name=f"streamshard-{name}", daemon=True)
        self.start()

    def end(self) -> None:
        """Wait until this thread, which was told to, has ended.

        Not in one of ours, where a garbage collection may have brought us, to wait for itself.
        """
        if isinstance(threading.current_thread(), OwnThread):
            return
        self.join(_JOIN_SECONDS)
        if self.is_alive():
            logger.warning("%s is stuck, in a read or a decoder, and is left alone", self.name)


class Threads:
    """Some threads, which do one thing at a time each, whoever asked first being served first."""

    def __init__(self, count: int) -> None:
        """Start them.

        Args:
            count: How many, at least 1.
        """
        self._jobs: SimpleQueue[tuple[_Round[Any, Any], int] | None] = SimpleQueue()
        self._is_closed = False
        self._threads = [OwnThread(self._serve, f"thread-{number}") for number in range(count)]

    def each(self, function: Callable[[T], R], things: Sequence[T], /) -> Iterator[R]:
        """Like `map`, begun at once; what nobody waits for any more is not done."""
        round_ = _Round(function, things)
        for number in range(len(things)):
            self._jobs.put((round_, number))
        if self._is_closed:  # so these may be behind what ends the threads, and never be done
            raise RuntimeError(_ENDED)
        return _Results(round_)

    def _serve(self) -> None:
        with alone():
            while job := self._jobs.get():
                round_, number = job
                round_.do(number, is_wanted=not self._is_closed)
                del job, round_  # while it waits, this thread keeps no sample alive

    def close(self) -> None:
        """End them, each after the sample that it is at; what waits for others gets an error."""
        self._is_closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.end()


class _Round(Generic[T, R]):
    """Things to be done, and what became of them."""

    def __init__(self, function: Callable[[T], R], things: Sequence[T]) -> None:
        self.is_wanted = True
        self.done = threading.Event()
        self.results: list[tuple[R | None, BaseException | None]] = [(None, None)] * len(things)
        self._function, self._things = function, things
        self._finished = itertools.count(1)  # its `next` is atomic
        if not things:
            self.done.set()

    def do(self, number: int, *, is_wanted: bool) -> None:
        """Do one of them, unless there is no need any more."""
        try:
            if not (is_wanted and self.is_wanted):
                raise RuntimeError(_ENDED)
            self.results[number] = self._function(self._things[number]), None
        except BaseException as error:
            self.results[number] = None, error
        if next(self._finished) == len(self.results):
            self.done.set()


class _Results(Iterator[R]):
    """What a round gives, in order; the first that failed raises."""

    def __init__(self, round_: _Round[Any, R]) -> None:
        self._round, self._next = round_, 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        self._round.done.wait()
        if self._next == len(self._round.results):
            raise StopIteration
        result, error = self._round.results[self._next]
        self._next += 1
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def __del__(self) -> None:
        self._round.is_wanted = False
