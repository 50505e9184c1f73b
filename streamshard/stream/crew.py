"""Processes that each do one piece of a work at a time; one that dies costs its piece only."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar

import torch

Result = TypeVar("Result")


class Died(NamedTuple):
    """What becomes of a piece whose process ended before it was done."""

    status: int

    def __str__(self) -> str:
        if self.status >= 0:
            return f"the worker that read it ended with status {self.status}"
        name = signal.Signals(-self.status).name
        memory = " (was there memory enough?)" if name == "SIGKILL" else ""
        return f"the worker that read it was killed by {name}{memory}"


def in_order(work: Callable[[int], Result], pieces: int, workers: int) -> Iterator[Result | Died]:
    """Do a work, and give what comes of each piece, in order.

    Args:
        work: Given the number of a piece; it can be pickled.
        pieces: How many there are.
        workers: Processes; 0 is this one alone.
    """
    workers = min(workers, pieces)
    if workers == 0:
        yield from map(work, range(pieces))
        return
    crew = _Crew(work, pieces)
    try:
        for _ in range(workers):
            crew.hire()
        for number in range(pieces):
            while number not in crew.done:
                crew.listen()
            yield crew.done.pop(number)
    finally:
        crew.dismiss()


class _Crew(Generic[Result]):
    """The processes, and what they have done."""

    def __init__(self, work: Callable[[int], Result], pieces: int) -> None:
        # Forked from a server: a progress bar's thread would not survive a plain fork.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__.rpartition(".")[0] + ".reader"])
        self._work = work
        self._left = iter(range(pieces))
        self._hands: dict[Connection, tuple[BaseProcess, int]] = {}
        self.done: dict[int, Result | Died] = {}

    def hire(self) -> None:
        """Start a process with the next piece, if one is left."""
        number = next(self._left, None)
        if number is None:
            return
        here, there = self._context.Pipe()
        process = self._context.Process(target=_labour, args=(self._work, there), daemon=True)
        process.start()
        there.close()  # so that the end of the process is the end of the pipe
        self._hands[here] = process, number
        self._send(here, number)

    def listen(self) -> None:
        """Wait until a process has something to say, or is gone."""
        for ready in wait(list(self._hands)):
            assert isinstance(ready, Connection)
            process, number = self._hands[ready]
            try:
                self.done[number] = ready.recv()
            except (EOFError, OSError):
                self._bury(ready)
                process.join()
                self.done[number] = Died(process.exitcode or 0)
                self.hire()
                continue
            self._go_on(ready, process)

    def dismiss(self) -> None:
        """End all processes."""
        for process, _ in self._hands.values():
            process.kill()
        for connection, (process, _) in self._hands.items():
            process.join()
            connection.close()

    def _go_on(self, hand: Connection, process: BaseProcess) -> None:
        number = next(self._left, None)
        if number is None:
            self._bury(hand)  # which ends the process
            process.join()
            return
        self._hands[hand] = process, number
        self._send(hand, number)

    def _bury(self, hand: Connection) -> None:
        del self._hands[hand]
        hand.close()

    @staticmethod
    def _send(hand: Connection, number: int) -> None:
        with contextlib.suppress(OSError):  # it died; `listen` finds out
            hand.send(number)


def _labour(work: Callable[[int], Any], orders: Connection) -> None:
    """What a process does: pieces, as long as there are orders."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this one
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            orders.send(work(orders.recv()))
