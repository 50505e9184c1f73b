"""What a reader of one part is, the sample that it reads, and whose fault an error was."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from streamshard.errors import DamagedError, SampleError, UsageError
from streamshard.plan.order import Ints, Places
from streamshard.stream.builder import BlockBuilder

# What seeds differ by; torch and numpy look at the lower 32 bits only.
_GLOBAL, _TRANSFORM = 0x5851F42D4C957F2D, 0x14057B7EF767814F


class _Own(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator()


_OWN = _Own()


class Place(NamedTuple):
    """One sample that is being read: where it lies, and its randomness.

    Attributes:
        source: Number of its dataset.
        shard: Number of its shard there.
        row: Its row in the shard's tar.
        seed: Of its augmentations.
    """

    source: int
    shard: int
    row: int
    seed: int

    def generator(self) -> torch.Generator:
        """This thread's, seeded for this sample: for each part anew, so image and mask agree."""
        return _OWN.generator.manual_seed(self.seed)

    def seed_globally(self) -> None:
        """Seed the generators that code of others draws from, unlike the one that it is given."""
        seed = self.seed ^ _GLOBAL
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    def transformed(self) -> Place:
        """The same sample with other randomness: a transform draws not what decoders drew."""
        return self._replace(seed=self.seed ^ _TRANSFORM)


AllPlaces = Callable[[], Sequence[Place]]


class PartReader(Protocol):
    """How one part gets from a row into a batch.

    A sample is fetched in any thread. What is then made of it runs in one thread, sample after
    sample: code of others may do what it likes, and draws from the global generators.
    """

    def fetch(self, place: Place) -> Any:
        """Read and decode, in any thread."""

    def collect(self, place: Place, fetched: Any) -> Any:
        """What the batch collects of a sample that was fetched."""

    def value(self, place: Place, fetched: Any) -> Any:
        """The decoded value of a sample that was fetched, for a transform."""

    def gather(self, where: Places, places: AllPlaces | None) -> Any | None:
        """What the batch collects of all samples at once; None where that can't be had so.

        Args:
            where: The samples.
            places: The same, one by one; None where other threads fetch samples.
        """

    def add(self, builder: BlockBuilder, name: str, values: Any) -> None:
        """One column of what was collected, one by one or at once."""

    def joined(self, others: Sequence[PartReader]) -> PartReader | None:
        """What lays out values of this reader and of other sources' together.

        None where only the values can tell whether they have one form.

        Raises:
            ValueError: They can't be in one batch.
        """


def by_shard(where: Places) -> Iterator[tuple[int, int, Ints]]:
    """Each shard of each source, and which of the places lie in it."""
    sources, shards, _ = where
    if len(shards) and (shards == shards[0]).all() and (sources == sources[0]).all():
        yield int(sources[0]), int(shards[0]), np.arange(len(shards))
        return
    order = np.lexsort((shards, sources))
    steps = np.flatnonzero((np.diff(shards[order]) != 0) | (np.diff(sources[order]) != 0)) + 1
    for chosen in np.split(order, steps):
        if len(chosen):
            yield int(sources[chosen[0]]), int(shards[chosen[0]]), chosen


class named:
    """Say in which sample the code of a decoder or the user failed: `with named(where): …`.

    Every sample goes through it, and `contextmanager` would cost twice as much.
    """

    def __init__(self, where: str | Callable[[], str]) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        if isinstance(error, SampleError | DamagedError | UsageError):
            return
        place = self._where if isinstance(self._where, str) else self._where()
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise SampleError(f"{place}: {what}") from error


@contextmanager
def generators_kept(needed: bool) -> Iterator[None]:
    """Leave the global random generators as they were."""
    if not needed:
        yield
        return
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
