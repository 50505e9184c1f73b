"""What one process of a trainer has planned, for its others to take.

The batches of an epoch within a budget are as large as the epoch, and all workers need them at the
same time: the first one plans them while the others wait for its lock and then copy what it wrote,
which is a hundred times as fast. The memory is a memfd that the trainer makes before its workers
start: nameless, freed by the kernel with its last user, and no larger than what is written into it.
The lock is one that the kernel takes back from a process that dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from streamshard.plan.budget import AnyInts, Batches, position_dtype
from streamshard.plan.order import Ints

Bytes = NDArray[np.uint8]

_SLOTS = 2  # an epoch, and the one that the first workers have gone on to
_HEAD = np.dtype([("name", "S32"), ("samples", "i8"), ("batches", "i8"), ("fill", "f8")])


class Board:
    """The batches of two epochs, in memory that processes share."""

    def __init__(self, descriptor: int, samples: int) -> None:
        """Take memory that there is; `new` makes some.

        Args:
            descriptor: Of the memory; -1 for a board that shares nothing.
            samples: Most samples of an epoch.
        """
        self._descriptor, self._samples = descriptor, samples

    @classmethod
    def new(cls, samples: int) -> Self:
        """A board for epochs of so many samples; without memfds it shares nothing."""
        if not hasattr(os, "memfd_create"):
            return cls(-1, samples)
        board = cls(os.memfd_create("streamshard-batches"), samples)
        os.ftruncate(board._descriptor, _SLOTS * board._slot_bytes)
        return board

    def __reduce__(self) -> tuple[Any, ...]:
        # A descriptor can be handed on only to a process that is being started.
        if self._descriptor < 0 or get_spawning_popen() is None:
            return Board, (-1, self._samples)
        return _received, (DupFd(self._descriptor), self._samples)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Bound, since at the interpreter's end modules may be gone before this is.
        if self._descriptor >= 0:
            close(self._descriptor)

    @property
    def _slot_bytes(self) -> int:
        """At most a batch for each sample; whole pages, since maps begin at them."""
        size = _HEAD.itemsize + 2 * 8 * self._samples
        return -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY

    def find(self, epoch: int, name: str, plan: Callable[[], Batches]) -> Batches:
        """The batches of that name, planned here unless another process has.

        Args:
            epoch: Of the batches; those of every other epoch share a place.
            name: Of everything that they depend on and that is not the same for the whole board.
            plan: Makes them.
        """
        if self._descriptor < 0:
            return plan()
        digest = hashlib.blake2b(name.encode(), digest_size=_HEAD["name"].itemsize).digest()
        with self._locked(epoch % _SLOTS) as slot:
            head = slot[: _HEAD.itemsize].view(_HEAD)
            if head["name"].tobytes() == digest:
                return _read(slot, head)
            batches = plan()
            head["name"] = b""  # so that a process that is killed here leaves no half
            _write(slot, head, batches)
            head["name"] = digest
            return batches

    @contextmanager
    def _locked(self, number: int) -> Iterator[Bytes]:
        """One slot, (bytes,) uint8, for this process alone."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            size = self._slot_bytes
            shared = mmap.mmap(self._descriptor, size, offset=number * size)
            yield np.frombuffer(shared, np.uint8)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _arrays(slot: Bytes, samples: int, batches: int) -> tuple[Ints, AnyInts]:
    """Where the ends of the batches lie in a slot, and behind them their members."""
    begin, end = _HEAD.itemsize, _HEAD.itemsize + 8 * batches
    dtype = position_dtype(samples)
    members = slot[end : end + samples * dtype.itemsize].view(dtype)
    return slot[begin:end].view(np.int64), members


def _read(slot: Bytes, head: NDArray[np.void]) -> Batches:
    ends, members = _arrays(slot, int(head["samples"][0]), int(head["batches"][0]))
    return Batches(members.copy(), ends.copy(), float(head["fill"][0]))


def _write(slot: Bytes, head: NDArray[np.void], batches: Batches) -> None:
    samples, count = len(batches.members), len(batches)
    ends, members = _arrays(slot, samples, count)
    ends[:], members[:] = batches.ends, batches.members
    head["samples"], head["batches"], head["fill"] = samples, count, batches.fill


def _received(descriptor: Any, samples: int) -> Board:
    """In the process that was started: the board that was handed on."""
    return Board(descriptor.detach(), samples)
