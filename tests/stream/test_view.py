"""Views: some samples of a dataset, with all its guarantees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamshard as ss
from tests.stream.data import collect, flat, keys_of, make_images, make_tars

COUNTS = (30, 7, 64, 19)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tars(tmp_path_factory.mktemp("tars"), COUNTS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_images(tmp_path_factory.mktemp("images"), 60)


def whole(url: str, **options: Any) -> ss.ShardDataset:
    return ss.ShardDataset(url, **{"batch_size": 8, "tail": "exact", "parts": None, **options})


def labels_of(dataset: ss.ShardDataset) -> list[int]:
    return [label for batch in ss.StreamLoader(dataset) for label in batch["cls"].tolist()]


def test_a_slice_is_those_samples_in_pack_order(tars: str) -> None:
    keys = keys_of(COUNTS)
    for begin, end in ((0, 5), (25, 45), (0, 120), (-7, None), (37, 38), (100, 1000)):
        assert flat(ss.StreamLoader(whole(tars)[begin:end])) == keys[begin:end]
    assert flat(ss.StreamLoader(whole(tars)[20:100][10:30])) == keys[30:50]
    assert len(whole(tars)[:100]) == 13


def test_labels_by_number_or_name_choose_those_classes(images: str) -> None:
    dataset = whole(images, parts=("cls", "__key__"))
    some = dataset.select(labels=["class1", 3])
    keys = [key for _, batch in ss.StreamLoader(some) for key in batch]
    assert len(keys) == 30
    assert {key.partition("/")[0] for key in keys} == {"class1", "class3"}
    with pytest.raises(ss.errors.UsageError, match="no class 'dog'"):
        dataset.select(labels=["dog"])


def test_keys_and_where_choose_from_the_index(tars: str, images: str) -> None:
    wanted = ["s2/0003", "s0/0029", "nothing"]
    assert flat(ss.StreamLoader(whole(tars).select(keys=wanted))) == ["s0/0029", "s2/0003"]
    dataset = whole(images, parts=("jpg", "cls"))
    wide = dataset.select(where=lambda columns: columns["jpg:width"] > columns["jpg:height"])
    for pictures, _ in ss.StreamLoader(wide):
        assert all(picture.shape[2] > picture.shape[1] for picture in pictures)
    rest = dataset.select(where=lambda columns: columns["jpg:width"] <= columns["jpg:height"])
    assert len(wide.source.view) + len(rest.source.view) == 60
    even = dataset.select(
        where=lambda columns: np.array([k[-1] in "02468" for k in columns["__key__"]])
    )
    assert len(even.source.view) == 30
    with pytest.raises(ss.errors.UsageError, match="a bool for each of"):
        dataset.select(where=lambda columns: columns["cls"])


def test_choices_combine(tars: str) -> None:
    dataset = whole(tars).select(where=lambda columns: columns["cls"] % 2 == 0)[10:30]
    even = [key for key in keys_of(COUNTS) if int(key[-1]) % 2 == 0]
    assert flat(ss.StreamLoader(dataset)) == even[10:30]
    again = dataset.select(labels=[4])
    assert flat(ss.StreamLoader(again)) == [key for key in even[10:30] if key[-1] == "4"]


def test_a_split_is_disjoint_complete_and_stable(tars: str) -> None:
    parts = whole(tars).split(train=0.7, val=0.3)
    keys = {name: set(flat(ss.StreamLoader(part))) for name, part in parts.items()}
    assert keys["train"] | keys["val"] == set(keys_of(COUNTS))
    assert not keys["train"] & keys["val"]
    assert 60 <= len(keys["train"]) <= 105
    smaller = whole(tars)[:50].split(train=0.7, val=0.3)
    assert set(flat(ss.StreamLoader(smaller["val"]))) == keys["val"] & set(keys_of(COUNTS)[:50])
    fractions: list[dict[str, Any]] = [{"train": 0.9, "val": 0.2}, {"train": 0.0}, {}]
    for bad in fractions:
        with pytest.raises(ss.errors.UsageError):
            whole(tars).split(**bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_view_keeps_every_guarantee(tars: str, workers: int) -> None:
    def view(rank: int = 0, size: int = 1, batch: int = 8) -> ss.ShardDataset:
        dataset = whole(
            tars, shuffle=True, lanes=2, grain=4, window=20, batch_size=batch,
            world=ss.World(rank, size),
        )  # fmt: skip
        return dataset.select(labels=[0, 1, 2, 3, 4, 5])[3:60]

    expected = flat(ss.StreamLoader(view()))
    assert len(expected) == len(set(expected)) == 57
    ranks = [collect(ss.StreamLoader(view(rank, 3))) for rank in range(3)]
    assert [key for step in zip(*ranks, strict=True) for keys in step for key in keys] == expected
    with ss.StreamLoader(view(), num_workers=workers) as loader:
        iterator = iter(loader)
        before = [next(iterator)["__key__"] for _ in range(3)]
        state = loader.state_dict()
    with ss.StreamLoader(view(batch=5), num_workers=workers) as loader:
        loader.load_state_dict(state)
        assert [key for keys in before for key in keys] + flat(loader) == expected


def test_a_state_of_the_whole_is_refused_by_a_view_and_by_another_view(tars: str) -> None:
    state = ss.StreamLoader(whole(tars)).state_dict()
    for view in (whole(tars)[:60], whole(tars).select(labels=[1])):
        with pytest.raises(ss.errors.CursorError, match="fingerprint"):
            ss.StreamLoader(view).load_state_dict(state)
    ss.StreamLoader(whole(tars)[:60]).load_state_dict(
        ss.StreamLoader(whole(tars)[0:60]).state_dict()
    )


def test_an_empty_choice_is_an_error(tars: str) -> None:
    choices: list[Callable[[Any], Any]] = [
        lambda dataset: dataset[50:50],
        lambda dataset: dataset.select(labels=[77]),
        lambda dataset: dataset.select(keys=[]),
        lambda dataset: dataset[3],
        lambda dataset: dataset[::2],
    ]
    for choose in choices:
        with pytest.raises(ss.errors.UsageError):
            choose(whole(tars))


def test_a_slice_reads_no_index(tars: str, tmp_path: Path) -> None:
    dataset = whole(tars)
    dataset[10:20]
    assert not dataset.shards._open
