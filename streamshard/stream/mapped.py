"""A worker's blocks as the trainer sees them: mapped through `/proc/PID/fd`, a ring only once."""

from __future__ import annotations

import contextlib
import os
import pickle
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.stream.block import Block
from streamshard.stream.ring import FRESH, Place, mapped
from streamshard.stream.turn import Turn

_PORTABLE = 1  # cudaHostRegisterPortable: locked for every GPU


class MappedMemory:
    """The memory of one worker, which may have ended: what is mapped stays valid."""

    def __init__(self, pid: int, device: torch.device | None) -> None:
        """Map nothing yet.

        Args:
            pid: Of the worker.
            device: Where blocks are copied to; for CUDA a ring's pages are locked.
        """
        self._pid, self._device = pid, device
        self._dropped: deque[int] = deque()
        self._held: dict[int, weakref.finalize[..., NDArray[np.uint8]]] = {}
        with _TURN:
            _ALL.add(self)
        self._number = FRESH
        self._ring: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def is_new(self, place: Place) -> bool:
        """Whether a place is in a ring that has not been mapped yet."""
        return place.ring not in (FRESH, self._number)

    def block_at(self, place: Place) -> Block:
        """The block at a place; one in a ring keeps to itself what stays on the host.

        Raises:
            RuntimeError: The worker ended before its memory was mapped.
        """
        end = place.start + place.nbytes
        whole = self._map(place)
        # Each block gets a storage of its own that ends where it does: what is copied, pinned or
        # pickled is the block, never its ring. Numpy's storages are also fit to be sent to other
        # processes, which those of `from_file` are not.
        array = whole[place.start : end]
        if place.ring == FRESH:
            self._watch(array, place.number)
        memory = torch.from_numpy(array)
        layout = pickle.loads(whole[end : end + place.layout_bytes].tobytes())  # our own worker's
        block = Block(memory, layout)
        return block if place.ring == FRESH else block.lent()

    def dropped(self, most: int) -> list[int]:
        """Blocks for keeps, by number, that nobody holds any more; each is told once."""
        return [self._dropped.popleft() for _ in range(min(most, len(self._dropped)))]

    def _watch(self, array: NDArray[np.uint8], number: int) -> None:
        """Take note when the last that sees this memory, of whatever kind, is gone.

        That may be in any thread and in the middle of anything, so it is only noted.
        """
        held, dropped = self._held, self._dropped

        def drop() -> None:
            if held.pop(number, None):
                dropped.append(number)

        held[number] = weakref.finalize(array, drop)
        held[number].atexit = False

    def forget(self) -> None:
        """Never tell of the blocks that are held now."""
        for number in list(self._held):
            if watched := self._held.pop(number, None):
                watched.detach()

    def _map(self, place: Place) -> NDArray[np.uint8]:
        if place.ring == FRESH:
            return _opened(self._pid, place)
        if self.is_new(place):  # what was lent of the ring before keeps that mapped
            self._ring, self._number = _opened(self._pid, place), place.ring
            if self._device is not None and self._device.type == "cuda":
                _lock_pages(self._ring, self._device)
        return self._ring


_ALL: weakref.WeakSet[MappedMemory] = weakref.WeakSet()
_TURN = Turn()  # to look at all of them, or to add one


def _forget_all() -> None:
    """At a fork: the other process has the batches that are held, and nobody hears of it."""
    with _TURN:
        everyone = list(_ALL)
    for memory in everyone:
        memory.forget()


# After it too: another thread may have taken one meanwhile.
os.register_at_fork(before=_forget_all, after_in_parent=_forget_all)


def _opened(pid: int, place: Place) -> NDArray[np.uint8]:
    """A worker's memfd, (size,) uint8."""
    return mapped(f"/proc/{pid}/fd/{place.descriptor}", place.size)


def _lock_pages(ring: NDArray[np.uint8], device: torch.device) -> None:
    """Let CUDA copy from a ring without a copy between; where it may not, blocks are pinned."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address, success = ring.ctypes.data, cudart.cudaError.success
    with torch.cuda.device(device):  # or another GPU would get a context, and give memory for it
        if cudart.cudaHostRegister(address, ring.nbytes, _PORTABLE) == success:
            # Before the mapping goes; not when the process ends, when CUDA may have gone first.
            unlock = weakref.finalize(ring, _unlock_pages, address, device, os.getpid())
            unlock.atexit = False
            return
        # The runtime keeps the error and the next kernel's launch would report it: let this one.
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=device)


def _unlock_pages(address: int, device: torch.device, process: int) -> None:
    if os.getpid() != process:
        return  # a fork of the trainer has the mapping, but CUDA can't be used there
    with torch.cuda.device(device):
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
