"""A plan's survey from real sidecars: what a dataset does, without opening a tar."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamshard as ss
from streamshard.errors import DamagedError, UsageError
from streamshard.shard.index import Index
from streamshard.stream import likeness as likeness_module
from streamshard.stream.likeness import Likeness
from streamshard.stream.reader import Shards
from streamshard.stream.survey import Plan, survey
from tests.pack.sources import tars_of
from tests.stream.data import UNEVEN, keys_of, make_tars

SIZE: dict[str, Any] = {"world_size": 2, "workers": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tars of 1,003 samples, of ten classes in turn."""
    return make_tars(tmp_path_factory.mktemp("data"), UNEVEN)


def labelled(folder: Path, shards: Sequence[Sequence[int | None]]) -> str:
    """Tars of samples with these classes, or none, indexed."""
    folder.mkdir()
    for number, labels in enumerate(shards):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for row, label in enumerate(labels):
                parts = {"txt": b"x"} | ({} if label is None else {"cls": str(label).encode()})
                for suffix, data in parts.items():
                    info = tarfile.TarInfo(f"s{number}r{row}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    ss.index_tars(folder)
    return str(folder)


def classes_of(url: str, **given: Any) -> Likeness:
    found = survey(Plan.of(Shards(url), **{**SIZE, **given})).classes
    assert found
    return found


@pytest.mark.parametrize("tail", ["drop", "pad", "exact"])
@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_the_plan_is_the_one_that_a_dataset_follows(url: str, tail: Any, shuffle: Any) -> None:
    plan = Plan.of(Shards(url), **SIZE, shuffle=shuffle, tail=tail, seed=5, epoch=3)
    found = survey(plan)
    in_pack_order = keys_of(UNEVEN)
    shard_of = {key: key.split("/")[0] for key in in_pack_order}
    received = []
    for rank in range(2):
        dataset = ss.ShardDataset(
            url, batch_size=16, shuffle=shuffle, tail=tail, seed=5, world=ss.World(rank, 2)
        )
        dataset.set_epoch(3)
        assert len(dataset) == found.steps
        batches = [batch["__key__"] for batch in dataset]
        for worker in range(2):
            shards = {shard_of[key] for batch in batches[worker::2] for key in batch}
            assert found.workers.each
            assert found.workers.each[2 * rank + worker][0] == len(shards)
        received += [key for batch in batches for key in batch]
    assert found.dropped == len(set(in_pack_order) - set(received))
    assert found.padded == len(received) - len(set(received))


def test_no_tar_is_opened(tmp_path: Path) -> None:
    url = make_tars(tmp_path / "data", [40] * 5)
    before = survey(Plan.of(Shards(url), **SIZE))
    for path in tars_of(tmp_path / "data"):
        path.unlink()
    os.rename(tmp_path / "data", tmp_path / "moved")
    assert survey(Plan.of(Shards(tmp_path / "moved"), **SIZE)) == before


def test_an_index_that_was_changed_is_an_error(tmp_path: Path) -> None:
    url = make_tars(tmp_path / "data", [40])
    index = next((tmp_path / "data" / ".streamshard").glob("*.index.safetensors"))
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError, match="out of step"):
        survey(Plan.of(Shards(url), **SIZE))


def alike(labels: Sequence[int | None]) -> float:
    """How often two of these have the same class, pair by pair."""
    known = [label for label in labels if label is not None]
    pairs = [(a, b) for at, a in enumerate(known) for b in known[:at]]
    return sum(a == b for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_likeness_is_that_of_all_pairs(tmp_path: Path, shuffle: Any) -> None:
    labels: list[list[int | None]] = [
        [0, 1, None, 3, 0, 0, 1],
        [2] * 20,
        [None] * 8,
        [row % 3 for row in range(30)],
    ]
    url = labelled(tmp_path / "data", labels)
    found = classes_of(url, shuffle=shuffle, workers=0, batch_size=5)
    datasets = [
        ss.ShardDataset(url, batch_size=5, shuffle=shuffle, parts=("__key__",), world=world)
        for world in (ss.World(0, 2), ss.World(1, 2))
    ]
    label_of = {
        f"s{shard}r{row}": label
        for shard, own in enumerate(labels)
        for row, label in enumerate(own)
    }
    batches = [[label_of[key] for key in keys] for dataset in datasets for (keys,) in dataset]
    rates = [alike(batch) for batch in batches if sum(label is not None for label in batch) > 1]
    assert found.here == pytest.approx(np.mean(rates))
    assert found.perfect == pytest.approx(alike([label for own in labels for label in own]))
    assert found.batches == found.of_batches == len(batches) >= len(rates)
    assert found.indexes == found.of_indexes == 4


def test_a_full_shuffle_is_near_perfect_and_a_sorted_pack_order_worst(tmp_path: Path) -> None:
    url = labelled(tmp_path / "data", [[label] * 30 for label in range(40)])
    none, full = classes_of(url, shuffle=False), classes_of(url, shuffle="full")
    assert none.here > 0.6
    assert full.here == pytest.approx(full.perfect, rel=0.1)


def test_of_many_shards_a_bounded_number_of_indexes_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = labelled(tmp_path / "data", [[shard % 10] * 12 for shard in range(60)])
    exact = {shuffle: classes_of(url, shuffle=shuffle) for shuffle in (False, "full")}
    monkeypatch.setattr(likeness_module, "_INDEXES", 20)
    read: list[int] = []
    whole = Shards.read_index

    def read_index(shards: Shards, number: int) -> Index:
        read.append(number)
        return whole(shards, number)

    monkeypatch.setattr(Shards, "read_index", read_index)
    for shuffle in (False, "full"):
        read.clear()
        found = classes_of(url, shuffle=shuffle)
        assert len(read) == len(set(read)) == found.indexes <= 40
        assert not found.is_exact
        assert found.of_indexes == 60
        assert found.perfect == pytest.approx(exact[shuffle].perfect, abs=0.05)
    assert classes_of(url, shuffle=False).here == pytest.approx(exact[False].here, abs=0.2)


def test_without_classes_or_pairs_there_is_no_likeness(url: str, tmp_path: Path) -> None:
    assert survey(Plan.of(Shards(url), world_size=1, workers=0, batch_size=1)).classes is None
    with ss.ShardWriter(tmp_path / "own") as writer:
        for number in range(10):
            writer.write({"__key__": f"{number}", "txt": "x"})
    plan = Plan.of(Shards(tmp_path / "own"), world_size=1, workers=0, batch_size=2)
    assert survey(plan).classes is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch_size": 1000}, "fewer than one global batch of 2 x 1000"),
        ({"workers": -1}, "workers is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"world_size": 0}, "world of 0"),
        ({"tail": "keep"}, "tail is 'keep'"),
        ({"shuffle": False, "window": 5}, "window="),
    ],
)
def test_a_plan_out_of_its_range_is_refused(url: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Plan.of(Shards(url), **{**SIZE, **given})


def test_samples_in_flight_are_those_of_all_workers(url: str) -> None:
    assert Plan.of(Shards(url), **SIZE).in_flight(prefetch=4) == 2 * 2 * 4 * 16
    alone = Plan.of(Shards(url), **{**SIZE, "workers": 0})
    assert alone.in_flight(prefetch=4) == 2 * 16
