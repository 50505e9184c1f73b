"""A resume late in an epoch reads what a fresh start reads: nothing of what came before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import streamshard as ss
from streamshard.plan.order import Shuffle
from tests.stream.data import flat, make_tars

# Lanes, windows and batches fit into shards, so that every batch is one shard's.
COUNTS, BATCH_SIZE = (100,) * 10, 10
WINDOWED = {"lanes": 5, "grain": BATCH_SIZE, "window": 100}


class Work(NamedTuple):
    """What a process asked of the kernel."""

    reads: list[int]  # bytes of each
    files: list[str]  # opened, in their order


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tars(tmp_path_factory.mktemp("tars"), COUNTS)


def loader_of(url: str, shuffle: Shuffle) -> ss.StreamLoader:
    windowed: dict[str, Any] = WINDOWED if shuffle is True else {}
    return ss.StreamLoader(ss.ShardDataset(url, batch_size=BATCH_SIZE, shuffle=shuffle, **windowed))


def first_batch(url: str, shuffle: Shuffle, state: dict[str, Any] | None) -> tuple[list[str], Work]:
    """The keys of the first batch, and all that was read for it since the dataset was opened."""
    work = Work([], [])
    pread, plain_open = os.pread, os.open

    def counted_pread(descriptor: int, length: int, offset: int) -> bytes:
        work.reads.append(length)
        return pread(descriptor, length, offset)

    def counted_open(path: str | Path, *more: Any, **options: Any) -> int:
        if str(path).startswith(url):
            work.files.append(str(path))
        return plain_open(path, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counted_pread)
        patch.setattr(os, "open", counted_open)
        loader = loader_of(url, shuffle)
        if state is not None:
            loader.load_state_dict(state)
        return next(iter(loader))["__key__"], work


def shards_in(work: Work) -> int:
    return sum(name.endswith(".tar") for name in work.files)


@pytest.mark.parametrize("percent", [10, 50, 90, 99])
@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_a_resume_late_in_an_epoch_reads_as_much_as_a_fresh_start(
    tars: str, shuffle: Shuffle, percent: int
) -> None:
    fresh, at_the_start = first_batch(tars, shuffle, None)
    before = loader_of(tars, shuffle)
    iterator = iter(before)
    keys = flat(next(iterator) for _ in range(percent))  # a hundred batches are an epoch
    assert keys[:BATCH_SIZE] == fresh
    resumed, late = first_batch(tars, shuffle, before.state_dict())

    assert resumed == next(iterator)["__key__"]
    assert len(late.reads) == len(at_the_start.reads) == BATCH_SIZE  # one part of each is read
    assert sum(late.reads) == sum(at_the_start.reads)
    if shuffle == "full":  # ten samples lie in up to ten shards, wherever in the epoch
        assert max(shards_in(late), shards_in(at_the_start)) <= BATCH_SIZE
    else:
        assert shards_in(late) == shards_in(at_the_start) == 1
        assert len(late.files) == len(at_the_start.files)
