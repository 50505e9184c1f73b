"""How often two samples of a batch are of one class, from a bounded number of indexes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from streamshard.plan.deal import Deal
from streamshard.plan.order import Ints, Order
from streamshard.plan.survey import WALKED, drawn
from streamshard.shard.index import MISSING, VALUE
from streamshard.stream.reader import Shards

PART = "cls"
_INDEXES = 32  # read for the batches, and as many for the dataset
_THREADS = 8  # over a network an index takes as long as its request
_SHARDS, _BATCHES, _SAMPLES = 16, 17, 18  # what is drawn


@dataclass(frozen=True)
class Likeness:
    """How often two samples of one batch have the same class.

    Attributes:
        here: The mean over batches of the sum over classes of o (o - 1) / (b (b - 1)), o the
            samples of the class in the batch, b those of the batch that have a class; batches with
            b < 2 don't count. Batches of one class give 1.
        perfect: What a perfect shuffle gives on average: the sum over classes of
            n (n - 1) / (N (N - 1)), n the samples of the class and N those that have one.
        batches: Full batches of one rank that were looked at; of one that comes from more shards
            than there are indexes to read, samples drawn from it.
        of_batches: Full batches of all ranks in the epoch.
        indexes: Of how many shards the classes were read; `perfect` is exact where these are all.
        of_indexes: Shards that have a sample.
    """

    here: float
    perfect: float
    batches: int
    of_batches: int
    indexes: int
    of_indexes: int

    @property
    def is_exact(self) -> bool:
        """Whether all batches and indexes were looked at."""
        return (self.batches, self.indexes) == (self.of_batches, self.of_indexes)


def likeness(shards: Shards, order: Order, deal: Deal) -> Likeness | None:
    """Measure it; None where samples have no class, or a batch has no two samples.

    All indexes are read where there are at most 64, else 32 drawn ones for the dataset and as many
    for the batches; no tar is opened.

    Raises:
        DamagedError: An index is not the one that the manifest was written with.
        StoreError: It can't be read.
    """
    if PART not in shards.manifest.parts or deal.batches[1] < 2:
        return None
    counts = shards.manifest.table.samples
    filled = np.flatnonzero(counts)
    all_read = len(filled) <= 2 * _INDEXES
    some = filled if all_read else filled[drawn(_INDEXES, len(filled), _SHARDS)]
    batches = _batches(order, deal, len(filled) if all_read else _INDEXES)
    wanted = np.unique(np.concatenate([some, *(shard for shard, _ in batches)]))
    classes = _classes(shards, wanted.tolist())
    rates = [_rate(_classes_of(classes, *batch)) for batch in batches]
    known = [rate for rate in rates if rate is not None]
    perfect = _dataset_rate([classes[number] for number in some.tolist()], len(filled))
    if not known or perfect is None:
        return None
    of_batches = deal.batches[0]
    here = float(np.mean(known))
    return Likeness(here, perfect, len(batches), of_batches, len(wanted), len(filled))


def _batches(order: Order, deal: Deal, indexes: int) -> list[tuple[Ints, Ints]]:
    """Shards and rows of drawn batches that come from so many shards together, at most."""
    groups, size = deal.batches
    samples = np.arange(min(size, WALKED))
    looked: list[tuple[Ints, Ints]] = []
    seen: set[int] = set()
    for number in drawn(max(WALKED // 4 // size, 1), groups, _BATCHES).tolist():
        shard, row = order.rows(number * size + samples)
        with_it = seen | set(np.unique(shard).tolist())
        if len(with_it) > indexes and not looked:
            part = drawn(indexes, len(samples), _SAMPLES)
            return [(shard[part], row[part])]
        if len(with_it) > indexes:
            return looked
        seen = with_it
        looked.append((shard, row))
    return looked


def _classes(shards: Shards, numbers: list[int]) -> dict[int, Ints]:
    """The class of every row of some shards; MISSING where a row has none."""
    optional = shards.manifest.parts[PART].optional

    def read(number: int) -> Ints:
        index = shards.read_index(number)
        size = index.extent(PART, optional=optional).size
        if not index.has_fact(PART, VALUE):
            return np.full_like(size, MISSING)
        return np.where(size == MISSING, MISSING, index.fact(PART))

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(numbers, pool.map(read, numbers), strict=True))


def _classes_of(classes: dict[int, Ints], shards: Ints, rows: Ints) -> Ints:
    """The classes of some samples."""
    found = np.empty_like(rows)
    for number in np.unique(shards).tolist():
        here = shards == number
        found[here] = classes[number][rows[here]]
    return found


def _rate(classes: Ints) -> float | None:
    """How often two of these have the same class; None where no two have one."""
    _, each = np.unique(classes[classes != MISSING], return_counts=True)
    total = int(each.sum())
    return float((each * (each - 1)).sum() / (total * (total - 1))) if total > 1 else None


def _dataset_rate(classes: list[Ints], shards: int) -> float | None:
    """The same for a dataset, of which the classes of some shards are known.

    Two samples of one shard are more alike than two of different shards, and there are more of
    them among few shards; so either kind of pair counts as often as there are in the dataset.
    """
    values, which = np.unique(np.concatenate(classes), return_inverse=True)
    owner = np.repeat(np.arange(len(classes)), [len(each) for each in classes])
    table = np.zeros((len(classes), len(values)), np.int64)
    np.add.at(table, (owner, which), 1)
    table = table[:, values != MISSING]
    each = table.sum(1)
    inside = float((table * (table - 1)).sum()), float((each * (each - 1)).sum())
    among = (
        float((table.sum(0) ** 2).sum() - (table**2).sum()),
        float(each.sum() ** 2 - (each**2).sum()),
    )
    more = (shards - 1) / (len(classes) - 1) if len(classes) > 1 else 1.0
    same, pairs = (inner + outer * more for inner, outer in zip(inside, among, strict=True))
    return same / pairs if pairs else None
