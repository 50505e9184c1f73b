"""The loader: the same batches whatever makes them, epochs, and the cursor."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import streamshard as ss
from tests.stream.data import collect, flat, make_images, make_tars, same


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tars(tmp_path_factory.mktemp("tars"), (30, 7, 64, 19))  # 120 samples


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_images(tmp_path_factory.mktemp("images"), 90)


def image_dataset(url: str, **options: Any) -> ss.ShardDataset:
    defaults: dict[str, Any] = {
        "batch_size": 8, "shuffle": True, "seed": 3, "decode": {"jpg": ss.RandomResizedCrop(16)},
    }  # fmt: skip
    return ss.ShardDataset(url, **{**defaults, **options})


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_batches_do_not_depend_on_workers_or_how_they_start(images: str, start_method: str) -> None:
    alone = ss.StreamLoader(image_dataset(images))
    expected = [list(alone) for _ in range(3)]
    with ss.StreamLoader(
        image_dataset(images), num_workers=3, prefetch=2, start_method=start_method
    ) as loader:
        for epoch in expected:
            assert same(list(map(dict, loader)), list(map(dict, epoch)))


def test_the_same_seed_gives_the_same_batches_and_another_does_not(images: str) -> None:
    one, two = (collect(ss.StreamLoader(image_dataset(images, seed=3))) for _ in range(2))
    assert one == two
    assert one != collect(ss.StreamLoader(image_dataset(images, seed=4)))


def test_epochs_differ_in_order_and_augmentation_and_hold_the_same_samples(images: str) -> None:
    loader = ss.StreamLoader(image_dataset(images, tail="exact"))
    first, second = list(loader), list(loader)
    assert collect(first) != collect(second)
    assert sorted(flat(first)) == sorted(flat(second))
    pixels = [
        {
            key: image
            for batch in epoch
            for key, image in zip(batch["__key__"], batch["jpg"], strict=True)
        }
        for epoch in (first, second)
    ]
    changed = sum(not torch.equal(pixels[0][key], pixels[1][key]) for key in pixels[0])
    assert changed > 80


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("tail", ["drop", "pad", "exact"])
def test_a_stop_after_every_step_goes_on_with_the_same_batches(
    images: str, workers: int, tail: str
) -> None:
    expected = list(ss.StreamLoader(image_dataset(images, tail=tail)))
    with ss.StreamLoader(image_dataset(images, tail=tail), num_workers=workers) as loader:
        for stop in range(len(expected)):
            fresh = ss.StreamLoader(image_dataset(images, tail=tail))
            iterator = iter(fresh)
            for _ in range(stop):
                next(iterator)
            state = json.loads(json.dumps(fresh.state_dict()))
            loader.load_state_dict(state)
            assert loader.steps_left == len(expected) - stop
            assert same(list(map(dict, loader)), list(map(dict, expected[stop:])))
            assert (loader.epoch, loader.state_dict()["position"]) == (1, 0)


def test_the_cursor_counts_what_was_received_not_what_was_prefetched(tars: str) -> None:
    with ss.StreamLoader(ss.ShardDataset(tars, batch_size=10), num_workers=2, prefetch=4) as loader:
        iterator = iter(loader)
        for received in range(1, 12):
            next(iterator)
            assert loader.state_dict()["position"] == 10 * received
        next(iterator)
        assert (loader.epoch, loader.state_dict()["position"]) == (1, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_break_ends_the_epoch_and_the_state_is_that_of_the_break(tars: str, workers: int) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, shuffle=True)
    whole = ss.StreamLoader(dataset)
    epochs = [collect(whole) for _ in range(3)]
    with ss.StreamLoader(dataset, num_workers=workers) as loader:
        for number, batch in enumerate(loader):
            assert batch["__key__"] == epochs[0][number]
            if number == 3:
                break
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (0, 40)
        assert collect(loader) == epochs[1]
        assert collect(loader) == epochs[2]
        loader.load_state_dict(state)
        assert collect(loader) == epochs[0][4:]
        assert loader.epoch == 1


def test_breaking_after_the_last_batch_skips_no_epoch(tars: str) -> None:
    loader = ss.StreamLoader(ss.ShardDataset(tars, batch_size=40))
    for number, _ in enumerate(loader):
        if number == 2:
            break
    assert loader.epoch == 1
    iter(loader)
    assert loader.epoch == 1
    assert len(list(loader)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_only_the_newest_iterator_goes_on(tars: str, workers: int) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10)
    with ss.StreamLoader(dataset, num_workers=workers) as loader:
        old = iter(loader)
        next(old)
        new = iter(loader)
        first = next(new)
        with pytest.raises(ss.errors.UsageError, match="left behind"):
            next(old)
        assert [first["__key__"], *collect(new)] == collect(ss.StreamLoader(dataset))


def test_two_loaders_over_one_dataset_do_not_disturb_each_other(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, shuffle=True)
    expected = collect(ss.StreamLoader(dataset))
    with ss.StreamLoader(dataset, num_workers=1) as one, ss.StreamLoader(dataset) as two:
        pairs = [(a["__key__"], b["__key__"]) for a, b in zip(one, two, strict=True)]
    assert pairs == [(keys, keys) for keys in expected]


def test_batches_that_are_kept_do_not_change(images: str) -> None:
    with ss.StreamLoader(image_dataset(images), num_workers=2, prefetch=1) as loader:
        kept, copies = [], []
        for _ in range(3):
            for batch in loader:
                kept.append(batch["jpg"])
                copies.append(batch["jpg"].clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 9}, "seed=3"),
        ({"shuffle": "full"}, "shuffle=True"),
        ({"grain": 5}, "grain=8"),
        ({"window": 99}, "window=90"),
    ],
)
def test_a_state_of_something_else_is_refused_showing_both_sides(
    images: str, changed: dict[str, Any], says: str
) -> None:
    state = ss.StreamLoader(image_dataset(images)).state_dict()
    loader = ss.StreamLoader(image_dataset(images, **changed))
    with pytest.raises(ss.errors.CursorError, match=says) as caught:
        loader.load_state_dict(state)
    assert repr(next(iter(changed.values()))) in str(caught.value)


def test_a_state_of_another_dataset_or_version_is_refused(images: str, tars: str) -> None:
    state = ss.StreamLoader(ss.ShardDataset(tars, batch_size=4, seed=3, shuffle=True)).state_dict()
    with pytest.raises(ss.errors.CursorError, match="fingerprint"):
        ss.StreamLoader(image_dataset(images)).load_state_dict(state)
    with pytest.raises(ss.errors.CursorError, match="version 99"):
        ss.StreamLoader(image_dataset(images)).load_state_dict({**state, "version": 99})


def test_a_state_with_too_little_left_under_drop_goes_to_the_next_epoch(tars: str) -> None:
    loader = ss.StreamLoader(ss.ShardDataset(tars, batch_size=50, tail="exact"))
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (0, 100)
    other = ss.StreamLoader(ss.ShardDataset(tars, batch_size=50, tail="drop"))
    other.load_state_dict(state)
    assert (other.epoch, other.steps_left) == (1, 2)


def test_the_state_is_a_copy_and_small(tars: str) -> None:
    loader = ss.StreamLoader(ss.ShardDataset(tars, batch_size=10))
    state = loader.state_dict()
    before = copy.deepcopy(state)
    next(iter(loader))
    assert state == before
    assert len(json.dumps(state)) < 300


def test_length_is_that_of_an_epoch_and_steps_left_count_down(tars: str) -> None:
    loader = ss.StreamLoader(ss.ShardDataset(tars, batch_size=10, world=ss.World(1, 2)))
    assert len(loader) == 6
    left = []
    for _ in loader:
        left.append(loader.steps_left)  # noqa: PERF401
    assert left == [5, 4, 3, 2, 1, 6]  # none is left of this epoch, so it is the next one's


def test_bad_arguments_are_refused(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10)
    for options in ({"num_workers": -1}, {"prefetch": 0}, {"restarts": -1}):
        with pytest.raises(ss.errors.UsageError):
            ss.StreamLoader(dataset, **options)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_on_cuda_the_batches_are_the_same_as_on_the_cpu(images: str) -> None:
    expected = list(ss.StreamLoader(image_dataset(images)))
    with ss.StreamLoader(image_dataset(images), num_workers=2, device="cuda") as loader:
        for batch, other in zip(loader, expected, strict=True):
            assert batch["jpg"].is_cuda
            assert torch.equal(batch["jpg"].cpu(), other["jpg"])
            assert batch["__key__"] == other["__key__"]


def test_a_state_survives_torch_save(tars: str, tmp_path: Path) -> None:
    loader = ss.StreamLoader(ss.ShardDataset(tars, batch_size=10, shuffle=True))
    next(iter(loader))
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    again = ss.StreamLoader(ss.ShardDataset(tars, batch_size=10, shuffle=True))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state_dict() == loader.state_dict()
