"""A worker's memory for blocks: a ring of slots that are written again and again, or memfds.

Both are nameless memory that the kernel frees with its last user, so a kill leaves nothing behind.
A block in the ring costs no system call and no page that was not there before, but must be given
back. One in a memfd of its own belongs to whoever takes it. Where that one says that nobody holds
it any more, it is written again, since new pages are what most of its price is; a few are
remembered for that, the others are the taker's alone.

The rule of the ring's size: the first block settles that of a slot, a quarter and at least 64 KiB
to spare. A block that outgrows the slots goes into fresh memory; with the fourth of them the ring
is left behind for one whose slots have as much to spare over the largest block so far. So slots
grow by at least a quarter each time, and there are few rings. Room that is never written to is
address space only, not memory.
"""

from __future__ import annotations

import itertools
import mmap
import os
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.stream.block import tensor_on

FRESH, DROPPED = 0, -1  # the ring's number of memory that is no ring's; of such that is unused
_SPARE = 64 * 1024  # bytes; at least what small blocks and their layouts differ by
_OUTGROWN = 4
_REMEMBERED = 10  # blocks that were taken or dropped: so many at most, and two more than may be out
_WORTH_AGAIN = 64 * 1024  # bytes from which on others that are larger may follow in the same memory


class Place(NamedTuple):
    """Where a block lies: the block, then its pickled layout.

    Attributes:
        ring: Which of the worker's rings, counted from 1, or `FRESH`.
        descriptor: The worker's number for the memfd.
        size: Bytes of the memfd that matter.
        start: Byte of the memfd where the block begins.
        nbytes: Of the block.
        layout_bytes: Of the layout.
        number: What its worker knows it by, in its ring or among all fresh ones.
    """

    ring: int
    descriptor: int
    size: int
    start: int
    nbytes: int
    layout_bytes: int
    number: int

    @property
    def own(self) -> tuple[int, int]:
        """What its worker knows it by."""
        return self.ring, self.number


def mapped(path: str, nbytes: int) -> NDArray[np.uint8]:
    """The first bytes of a file, (nbytes,) uint8, shared; costs no descriptor, as `mmap` would."""
    if nbytes == 0:
        return np.zeros(0, np.uint8)
    storage = cast(
        "torch.UntypedStorage",
        torch.UntypedStorage.from_file(path, shared=True, nbytes=nbytes),
    )
    array: NDArray[np.uint8] = tensor_on(storage, torch.uint8, 0, (nbytes,)).numpy()
    return array


class _Memfd:
    """Nameless memory, mapped."""

    def __init__(self, nbytes: int) -> None:
        self.descriptor = os.memfd_create("streamshard")
        os.ftruncate(self.descriptor, nbytes)
        self.bytes = mapped(f"/proc/self/fd/{self.descriptor}", nbytes)

    def close(self) -> None:
        """Keep no descriptor; the mapping goes with its last user."""
        os.close(self.descriptor)


class _Ring(_Memfd):
    """Slots of one size."""

    def __init__(self, number: int, slots: int, largest: int) -> None:
        page = mmap.PAGESIZE
        self.number, self.slots = number, slots
        self.slot_bytes = -(-max(largest * 5 // 4, largest + _SPARE) // page) * page
        super().__init__(slots * self.slot_bytes)
        # Starts of slots; the last given back is the first to be used, while caches hold it.
        self.free = [slot * self.slot_bytes for slot in range(slots)]


class BlockMemory:
    """Where a worker writes its blocks, and how many of them may be out at once."""

    def __init__(self, slots: int, *, reuse: bool) -> None:
        """Make nothing yet: how large blocks are shows with the first.

        Args:
            slots: Blocks that may be out, at least 1.
            reuse: Whether they are to lie in a ring.
        """
        self._slots, self._reuse = slots, reuse
        self._rings: list[_Ring] = []  # the newest last; older ones until all their slots are back
        self._made = 0  # rings
        self._numbers = itertools.count(1)  # of blocks in fresh memory
        self._fresh: dict[int, _Memfd] = {}  # such that are out, by number
        self._taken: dict[int, _Memfd] = {}  # and that were taken, the oldest first
        self._unused: list[_Memfd] = []  # and that nobody holds any more
        self._outgrown: list[int] = []  # sizes
        self._current: _Memfd | None = None
        self._start = self._nbytes = 0

    @property
    def has_room(self) -> bool:
        """Whether a block may be made."""
        lent = sum(ring.slots - len(ring.free) for ring in self._rings)
        return lent + len(self._fresh) < self._slots

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Memory for the next block, (nbytes,) uint8; there must be room.

        What was allocated and never handed over is used again or freed.
        """
        self._give_up()
        ring = self._ring_for(nbytes) if self._reuse else None
        self._nbytes = nbytes
        if ring is None:
            self._current, self._start = self._fresh_for(nbytes), 0
        else:
            self._current, self._start = ring, ring.free[-1]
        return torch.from_numpy(self._current.bytes[self._start : self._start + nbytes])

    def hand_over(self, layout: bytes) -> Place:
        """Write the layout behind the block that was allocated last; from now on it is out."""
        current, start, nbytes = self._current, self._start, self._nbytes
        assert current is not None
        if isinstance(current, _Ring) and nbytes + len(layout) > current.slot_bytes:
            block = current.bytes[start : start + nbytes]
            self._outgrown.append(nbytes + len(layout))
            current, start = self._fresh_for(nbytes), 0
            current.bytes[:nbytes] = block
        self._current = None
        os.pwrite(current.descriptor, layout, start + nbytes)
        if isinstance(current, _Ring):
            current.free.remove(start)
            ring, size, number = current.number, len(current.bytes), start
        else:
            number = next(self._numbers)
            self._fresh[number] = current
            ring, size = FRESH, nbytes + len(layout)
        return Place(ring, current.descriptor, size, start, nbytes, len(layout), number)

    def take_back(self, ring: int, number: int) -> None:
        """A slot can be written again; fresh memory now belongs to who took it.

        Args:
            ring: Of the place; `DROPPED` where who took it, or nobody, holds it any more.
            number: Of the place.
        """
        if ring == FRESH:
            self._remember(number, self._fresh.pop(number))
            return
        if ring == DROPPED:
            if number in self._taken:  # else it was forgotten
                self._unused.append(self._taken.pop(number))
            return
        next(each for each in self._rings if each.number == ring).free.append(number)
        self._close_left_behind()

    def _remember(self, number: int, memfd: _Memfd) -> None:
        """A block was taken: it, or one before it, is forgotten where there are enough."""
        self._taken[number] = memfd
        most = 0 if self._reuse else min(_REMEMBERED, self._slots + 2)
        if len(self._taken) + len(self._unused) > most:
            forgotten = self._unused or [self._taken.pop(next(iter(self._taken)))]
            forgotten.pop().close()

    def _fresh_for(self, nbytes: int) -> _Memfd:
        """Memory of its own for such a block: the last that was dropped, while caches hold it."""
        while self._unused:
            memfd = self._unused.pop()
            if nbytes <= len(memfd.bytes) <= 2 * nbytes:
                return memfd
            memfd.close()
        return _Memfd(nbytes if nbytes < _WORTH_AGAIN else nbytes * 5 // 4)

    def _ring_for(self, nbytes: int) -> _Ring | None:
        """The ring whose slots take such a block; None where it has outgrown them."""
        if not self._rings:
            self._add_ring(nbytes)
        elif nbytes > self._rings[-1].slot_bytes:
            self._outgrown.append(nbytes)
        if len(self._outgrown) >= _OUTGROWN:
            self._add_ring(max(*self._outgrown, nbytes))
        ring = self._rings[-1]
        return ring if nbytes <= ring.slot_bytes else None

    def _add_ring(self, largest: int) -> None:
        self._made += 1
        self._rings.append(_Ring(self._made, self._slots, largest))
        self._outgrown = []
        self._close_left_behind()

    def _close_left_behind(self) -> None:
        for ring in self._rings[:-1]:
            if len(ring.free) == ring.slots:
                self._rings.remove(ring)
                ring.close()

    def _give_up(self) -> None:
        """A block that could not be written is not handed over."""
        if self._current is not None and not isinstance(self._current, _Ring):
            self._current.close()
        self._current = None
