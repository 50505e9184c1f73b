"""Ranks of torchrun stay in step, the tail's rule holds, and a cursor fits any topology."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.plan.order import Shuffle
from tests.stream.data import UNEVEN, keys_of, make_tars
from tests.stream.ranks import Results, forked, torchrun


def sequence(results: Results, name: str) -> list[tuple[str, bool]]:
    """What all ranks received, as one sequence: steps in order, in each step the ranks in order."""
    ranks = [result[name]["batches"] for result in results]
    assert len({len(batches) for batches in ranks}) == 1, f"{name}: unequal numbers of steps"
    assert all(len(result[name]["batches"]) <= result[name]["promised"] for result in results)
    delivered = []
    for step in zip(*ranks, strict=True):
        for batch in step:
            mask = batch["mask"] or [True] * len(batch["keys"])
            delivered += list(zip(batch["keys"], mask, strict=True))
    return delivered


def uninterrupted(url: str, shuffle: Shuffle) -> list[str]:
    """The whole sequence, from one process without workers."""
    windowed: Any = {"lanes": 6, "grain": 4, "window": 64} if shuffle is True else {}
    dataset = ss.ShardDataset(
        url,
        batch_size=50,
        tail="exact",
        shuffle=shuffle,
        world=ss.World(0, 1),
        **windowed,
    )
    return [key for batch in ss.StreamLoader(dataset) for key in batch["__key__"]]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tars")
    counts = {"uneven": UNEVEN, "single": (100,), "tiny": (6, 4)}
    return {name: make_tars(folder / name, count) for name, count in counts.items()}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_rank_takes_the_same_steps_and_the_tail_keeps_its_rule(
    tmp_path: Path, urls: dict[str, str], processes: int
) -> None:
    settings = [
        {
            "name": f"{data}-{tail}-{workers}-{shuffle}", "url": urls[data], "workers": workers,
            "tail": tail, "shuffle": shuffle, "batch": 16,
        }
        for data in urls
        for tail in ("drop", "pad", "exact")
        for workers, shuffle in ((0, False), (1, True), (3, True), (3, "full"))
    ]  # fmt: skip
    start = torchrun if processes == 2 else forked
    results = start(tmp_path / "run", processes, settings)
    for setting in settings:
        name, url, tail = str(setting["name"]), str(setting["url"]), setting["tail"]
        expected = uninterrupted(url, setting["shuffle"])  # type: ignore[arg-type]
        total, whole = len(expected), len(expected) // (16 * processes) * 16 * processes
        if tail == "drop" and whole == 0:
            assert all("fewer than one global batch" in result[name]["error"] for result in results)
            continue
        delivered = sequence(results, name)
        if tail == "drop":
            assert delivered == [(key, True) for key in expected[:whole]]
        elif tail == "exact":
            assert delivered == [(key, True) for key in expected]
        else:
            filled = -(-total // (16 * processes)) * 16 * processes
            repeats = [(expected[p % total], False) for p in range(total, filled)]
            assert delivered == [(key, True) for key in expected] + repeats


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stop_after_any_step_resumes_on_another_topology(
    tmp_path: Path, urls: dict[str, str], every: int
) -> None:
    """2 ranks x 1 worker, batch 16, stopped after every k; then 3 ranks x 2 workers, batch 10."""
    url = urls["uneven"]
    stops = range(0, 1003 // 32, every)  # after which something of the epoch is left
    first = forked(
        tmp_path / "first", 2,
        [
            {"name": f"{tail}-{stop}", "url": url, "workers": 1, "tail": tail, "shuffle": True,
             "batch": 16, "stop": stop}
            for tail in ("drop", "exact") for stop in stops
        ],
    )  # fmt: skip
    for name in first[0]:
        assert first[0][name]["state"] == first[1][name]["state"], "ranks have different cursors"
    second = forked(
        tmp_path / "second", 3,
        [
            {"name": name, "url": url, "workers": 2, "tail": name.partition("-")[0],
             "shuffle": True, "batch": 10, "state": first[0][name]["state"]}
            for name in first[0]
        ],
    )  # fmt: skip
    expected = uninterrupted(url, True)
    for name in first[0]:
        before = [key for key, _ in sequence(first, name)]
        after = [key for key, _ in sequence(second, name)]
        assert second[0][name]["epoch"] == 0
        if name.startswith("exact"):
            assert before + after == expected
        else:
            assert before + after == expected[: len(before) + len(after)]
            assert len(expected) - len(before) - len(after) < 30


def test_the_datasets_are_what_the_test_thinks(urls: dict[str, str]) -> None:
    assert uninterrupted(urls["uneven"], False) == keys_of(UNEVEN)
    assert sorted(uninterrupted(urls["uneven"], True)) == sorted(keys_of(UNEVEN))
