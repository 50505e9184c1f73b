"""Bytes as they are: read straight into the block, the same as read one by one, and checked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.shard import tar
from tests.stream.data import same
from tests.stream.test_reader import damage

NUMBERS = range(60)


def data_of(number: int) -> bytes:
    """From nothing to several pages; below and above what is read together with its header."""
    chance = random.Random(number)
    return chance.randbytes(chance.choice((0, 1, 511, 512, 4096, 4097, 20_000)))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    with ss.ShardWriter(str(tmp_path / "data"), shard_size="100KB") as writer:
        for number in NUMBERS:
            key = f"{number:03d}"
            writer.write({"__key__": key, "bin": data_of(number), "txt": key, "cls": number})
    return tmp_path / "data"


def dataset(url: str | Path, **options: Any) -> ss.ShardDataset:
    return ss.ShardDataset(
        url,
        **{
            "batch_size": 7, "tail": "exact", "shuffle": True,
            "decode": {"bin": bytes, "txt": bytes}, **options,
        },
    )  # fmt: skip


def unchanged(sample: dict[str, Any]) -> dict[str, Any]:
    """A transform, for which samples are read one by one."""
    return sample


@pytest.mark.parametrize("loader", [
    {}, {"threads": 2}, {"num_workers": 2}, {"num_workers": 1, "threads": 2, "reuse": True},
])  # fmt: skip
def test_they_are_what_was_packed_and_are_for_keeps(packed: Path, loader: dict[str, Any]) -> None:
    with ss.StreamLoader(dataset(packed), prefetch=1, **loader) as stream:
        batches = list(stream)
    found = [data for batch in batches for data in batch["bin"]]
    assert all(type(data) is bytes for data in found)
    labels = [int(key) for batch in batches for key in batch["__key__"]]
    assert sorted(labels) == list(NUMBERS)
    assert found == [data_of(number) for number in labels]
    assert [data for batch in batches for data in batch["txt"]] == [b"%03d" % n for n in labels]


def test_they_are_the_same_read_at_once_and_one_by_one(packed: Path, tmp_path: Path) -> None:
    one_by_one = dataset(packed, transform=unchanged)
    for got, wanted in zip(dataset(packed), one_by_one, strict=True):
        assert {**got, "cls": got["cls"].tolist()} == {**wanted, "cls": wanted["cls"].tolist()}
    mixture = ss.Mixture({"a": dataset(packed), "b": dataset(packed)[:20]})
    other = ss.Mixture({"a": one_by_one, "b": one_by_one[:20]})
    for got, wanted in zip(
        ss.ShardDataset(mixture, batch_size=9, parts=("bin", "__source__", "cls")),
        ss.ShardDataset(other, batch_size=9, parts=("bin", "__source__", "cls")),
        strict=True,
    ):
        assert same(got, wanted)


def test_a_batch_without_samples_has_empty_lists(packed: Path) -> None:
    (batch,) = dataset(packed, batch_size=1, world=ss.World(60, 61))
    assert (batch["bin"], batch["txt"], batch["__key__"]) == ([], [], [])


def broken(packed: Path, number: int, where: int) -> Path:
    """One byte of a sample changed: of its header (the name) or its data."""
    shards = ss.open(str(packed))
    shard, row = shards.locate(number)
    offset = int(shards.extent(shard, "bin").offset[row])
    damage(packed / shards.manifest.table[shard].name, offset + where)
    return packed


@pytest.mark.parametrize(("where", "says"), [(0, "crc32"), (1 - tar.BLOCK, "out of step")])
@pytest.mark.parametrize("loader", [{}, {"num_workers": 1, "reuse": True}])
def test_a_damaged_one_is_named_or_left_out_alone(
    packed: Path, where: int, says: str, loader: dict[str, Any]
) -> None:
    bad = [number for number in NUMBERS if len(data_of(number)) > 4096][3:5]
    for number in reversed(bad):
        broken(packed, number, where)
    whole = dataset(packed, shuffle=False, batch_size=60)
    with (
        ss.StreamLoader(whole, **loader) as stream,
        pytest.raises(ss.errors.DamagedError, match=f"key {bad[0]:03d}, part bin.*{says}"),
    ):
        next(iter(stream))
    with ss.StreamLoader(dataset(packed, on_error="skip"), **loader) as stream:
        batches = list(stream)
        assert stream.skipped == 2
    left = [key for batch in batches for key in batch["__key__"]]
    assert sorted(left) == [f"{number:03d}" for number in NUMBERS if number not in bad]
    assert [data for batch in batches for data in batch["bin"]] == [data_of(int(k)) for k in left]


def test_what_is_not_to_be_verified_is_not(packed: Path) -> None:
    number = max(NUMBERS, key=lambda number: len(data_of(number)))
    batches = list(dataset(broken(packed, number, 0), verify=False))
    found = dict(
        pair for batch in batches for pair in zip(batch["__key__"], batch["bin"], strict=True)
    )
    assert found[f"{number:03d}"][1:] == data_of(number)[1:]


def test_they_come_from_memory_and_with_parts_that_are_missing(memory_url: str) -> None:
    with ss.ShardWriter(memory_url, shard_size="100KB") as writer:
        for number in NUMBERS:
            writer.write({"__key__": f"{number:03d}", "bin": data_of(number)})
    with ss.StreamLoader(
        dataset(memory_url, decode={"bin": bytes}, shuffle=False), threads=3
    ) as stream:
        assert [d for batch in stream for d in batch["bin"]] == [data_of(n) for n in NUMBERS]
