"""Shards in use: opened when first needed, a bounded number at a time, by any number of threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamshard.shard.index import Index
from streamshard.shard.manifest import Shard
from streamshard.store.base import File
from streamshard.stream.turn import Turn

AT_MOST = 40  # per process; each has up to three descriptors, of which 256 may be all there are
_TURNS = 16  # shards that may be opened at once


@dataclass
class OpenShard:
    """One shard in use.

    Attributes:
        shard: Its row of the shard table.
        index: Its columns.
        file: Its tar. Nobody closes it: it closes itself once the last thread that reads it, and
            may have found it before it was given up here, lets it go.
        map: Its tar, memory-mapped.
        chosen: Rows that something chose, by its name.
    """

    shard: Shard
    index: Index
    file: File
    map: memoryview | None = None
    chosen: dict[str, NDArray[np.int64]] = field(default_factory=dict)


class OpenShards:
    """The shards of a dataset that this process used last.

    Single operations of the dict are atomic, so finding one takes no lock.
    """

    def __init__(self) -> None:
        self._at_most = AT_MOST
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._turns = [Turn() for _ in range(_TURNS)]

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay in this process; shared pages are mapped anew in the other.
        return {**self.__dict__, "_open": OrderedDict()}

    def __len__(self) -> int:
        return len(self._open)

    def keep_at_most(self, number: int) -> None:
        """Keep only so many open, at least two."""
        self._at_most = max(2, number)

    def find(self, number: int, opened: Callable[[int], OpenShard]) -> OpenShard:
        """A shard, opened by the first thread that asks for it while others wait.

        Args:
            number: Of the shard.
            opened: Opens it.
        """
        found = self._open.get(number)
        if found is None:
            with self.turn(number):
                found = self._open.get(number)
                if found is None:
                    found = self._open[number] = opened(number)
                    while len(self._open) > self._at_most:
                        self._open.popitem(last=False)
            return found
        try:  # noqa: SIM105 - `suppress` costs more than all the rest, and this is for every part
            self._open.move_to_end(number)
        except KeyError:
            pass  # another thread has just given it up
        return found

    def turn(self, number: int) -> Turn:
        """The lock of what is done once for a shard."""
        return self._turns[number % len(self._turns)]
