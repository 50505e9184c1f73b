"""Some samples of a dataset: decided from manifest and indexes, before any data is read.

A view keeps how many rows of each shard are chosen, not which: those are found again from the
shard's index when it is used, so a view is as small as the shard table however many samples it has.
The plan runs over the chosen rows, so everything that holds of a dataset holds of a view.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import UsageError
from streamshard.plan.order import Ints
from streamshard.shard.index import Index
from streamshard.shard.split import hash_bounds, key_hash
from streamshard.stream.reader import Shards

Columns = Mapping[str, Any]
Where = Callable[[Columns], Any]


class Filter(Protocol):
    """One choice of rows; picklable, and the same every time."""

    def __call__(self, shard: int, index: Index, rows: Ints) -> Ints:
        """Those of a shard's rows that are kept, in order."""


@dataclass(frozen=True)
class Values:
    """Rows where an integer part, such as `cls`, has one of some values."""

    part: str
    values: tuple[int, ...]

    def __call__(self, shard: int, index: Index, rows: Ints) -> Ints:
        """See `Filter`."""
        kept: Ints = rows[np.isin(index.fact(self.part)[rows], self.values)]
        return kept


@dataclass(frozen=True)
class Keys:
    """Rows with one of some keys."""

    keys: frozenset[str]

    def __call__(self, shard: int, index: Index, rows: Ints) -> Ints:
        """See `Filter`."""
        return np.array([row for row in rows.tolist() if index.keys[row] in self.keys], np.int64)


@dataclass(frozen=True)
class HashRange:
    """Rows whose key has a hash in [begin, end): a part of the samples that stays the same.

    Attributes:
        begin: Least hash.
        end: One more than the largest.
        salt: Tells the split of a split from the first, which would choose by the same hash.
    """

    begin: int
    end: int
    salt: int = 0

    def __call__(self, shard: int, index: Index, rows: Ints) -> Ints:
        """See `Filter`."""
        hashes = (key_hash(index.keys[row], self.salt) for row in rows.tolist())
        kept = [self.begin <= value < self.end for value in hashes]
        chosen: Ints = rows[np.array(kept, bool)]
        return chosen


@dataclass(frozen=True)
class Accepted:
    """Rows that a function of the index's columns accepts."""

    where: Where

    def __call__(self, shard: int, index: Index, rows: Ints) -> Ints:
        """See `Filter`."""
        if not len(rows):
            return rows
        columns: dict[str, Any] = {"__key__": [index.keys[row] for row in rows.tolist()]}
        columns |= {name: column[rows] for name, column in index.facts().items()}
        mask = np.asarray(self.where(columns))
        if mask.dtype != bool or mask.shape != rows.shape:
            raise UsageError(
                f"where= gave {mask.dtype} of shape {mask.shape}; a bool for each of "
                f"{len(rows)} rows is wanted"
            )
        accepted: Ints = rows[mask]
        return accepted


@dataclass(frozen=True)
class Places:
    """Rows by their place in the view before: [begin, end) of its samples laid end to end."""

    starts: NDArray[np.int64]  # (shards,) where each shard begins there
    begin: int
    end: int

    def __call__(self, shard: int, index: Index, rows: Ints) -> Ints:
        """See `Filter`."""
        start = int(self.starts[shard])
        return rows[max(self.begin - start, 0) : max(self.end - start, 0)]


@dataclass(frozen=True)
class View:
    """Some rows of each shard.

    Attributes:
        counts: (shards,) int64, rows chosen of each.
        fingerprint: Of the dataset and the choice.
        filters: What chooses them, one after another; none for all rows.
    """

    counts: Ints
    fingerprint: str
    filters: tuple[Filter, ...] = ()

    def __len__(self) -> int:
        return int(self.counts.sum())

    @classmethod
    def whole(cls, shards: Shards) -> View:
        """All rows of a dataset."""
        return cls(shards.manifest.table.samples, shards.manifest.fingerprint)

    def rows(self, shards: Shards, shard: int) -> Ints:
        """The chosen rows of a shard, ascending."""
        index = shards.index(shard)
        rows = np.arange(len(index), dtype=np.int64)
        for choose in self.filters:
            rows = choose(shard, index, rows)
        return rows

    def locate(self, shards: Shards, numbers: Ints, places: Ints) -> Ints:
        """The rows in the tar of some places among the chosen rows of their shards.

        Args:
            shards: The dataset.
            numbers: (n,) int64, shards.
            places: (n,) int64, places among their chosen rows.
        """
        if not self.filters:
            return places
        rows = np.empty_like(places)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            chosen = shards.chosen(number, self.fingerprint, partial(self.rows, shards, number))
            if len(chosen) != self.counts[number]:
                raise UsageError("where= does not choose the same samples as before; it must")
            rows[here] = chosen[places[here]]
        return rows

    def narrowed(self, shards: Shards, choose: Filter, what: str) -> View:
        """The rows of this view that a filter keeps; reads every index.

        Raises:
            UsageError: It keeps none.
        """
        view = dataclasses.replace(self, filters=(*self.filters, choose))
        digest = hashlib.sha256(self.fingerprint.encode())
        counts = np.zeros_like(self.counts)
        for number in range(len(counts)):
            rows = view.rows(shards, number)
            counts[number] = len(rows)
            digest.update(np.ascontiguousarray([number, *rows], "<i8"))
        if not counts.sum():
            raise UsageError(f"{shards.where}: no sample is left by {what}")
        return dataclasses.replace(view, counts=counts, fingerprint=digest.hexdigest()[:32])

    def between(self, begin: int, end: int, where: str) -> View:
        """The samples [begin, end) of this view in pack order; reads no index.

        Raises:
            UsageError: There is none.
        """
        ends = np.cumsum(self.counts)
        starts = ends - self.counts
        counts = np.clip(ends, begin, end) - np.clip(starts, begin, end)
        if not counts.sum():
            raise UsageError(f"{where}: no sample in [{begin}:{end}] of {len(self)}")
        digest = hashlib.sha256(f"{self.fingerprint} {begin} {end}".encode()).hexdigest()[:32]
        return View(counts, digest, (*self.filters, Places(starts, begin, end)))


def selected(
    view: View,
    shards: Shards,
    *,
    labels: Sequence[int | str] | None,
    keys: Iterable[str] | None,
    where: Where | None,
) -> View:
    """The rows of a view that have one of these labels and keys and that a function accepts.

    Raises:
        UsageError: A class is unknown, or nothing is left.
    """
    if labels is not None:
        values = Values("cls", label_values(shards, labels))
        view = view.narrowed(shards, values, f"labels={labels}")
    if keys is not None:
        view = view.narrowed(shards, Keys(frozenset(keys)), "keys=")
    if where is not None:
        view = view.narrowed(shards, Accepted(where), "where=")
    return view


def label_values(shards: Shards, labels: Sequence[int | str]) -> tuple[int, ...]:
    """Values of `cls` from numbers and class names.

    Raises:
        UsageError: A name is no class.
    """
    if "cls" not in shards.manifest.parts:
        raise UsageError(f"{shards.where} has no part 'cls' to choose by")
    classes = list(shards.classes or ())
    unknown = [label for label in labels if isinstance(label, str) and label not in classes]
    if unknown:
        raise UsageError(f"{shards.where} has no class {unknown[0]!r}; see dataset.classes")
    return tuple(classes.index(label) if isinstance(label, str) else label for label in labels)


def hash_ranges(fractions: Mapping[str, float], view: View) -> dict[str, HashRange]:
    """A range of hashes for each name, in proportion, independent of earlier splits of a view.

    Raises:
        UsageError: A fraction is not above 0, or they are more than 1 together.
    """
    salt = sum(isinstance(choose, HashRange) for choose in view.filters)
    return {name: HashRange(*bounds, salt) for name, bounds in hash_bounds(fractions).items()}
