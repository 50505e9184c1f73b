"""Ranks of torchrun: a training that changes its topology again and again gives what one run gives.

From 3 ranks x 2 workers to 2 x 5 to 1 x 0 and back, the batch size changing on the way; to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch_geometric.data import Data

import streamshard as ss
from tests.stream.data import checksums, make_images
from tests.stream.ranks import forked

SAMPLES, CROP = 150, 16
RULES: dict[str, dict[str, Any]] = {
    "pack order": {"shuffle": False},
    "windows": {"shuffle": True},
    "windows, lanes derived": {"shuffle": True, "rule": {"window": 16}},
    "full": {"shuffle": "full"},
}


class Link(NamedTuple):
    """The topology of one run of the chain."""

    ranks: int
    workers: int
    batch_size: int


CHAIN = (Link(3, 2, 7), Link(2, 5, 9), Link(1, 0, 20), Link(3, 2, 8))
Sample = tuple[str, int]  # key, checksum


def make_graphs(folder: Path, count: int) -> str:
    """Packed random graphs of one to nine nodes."""
    rng = torch.Generator().manual_seed(0)
    graphs = [
        Data(
            x=torch.randn(nodes, 3, generator=rng),
            edge_index=torch.randint(0, nodes, (2, 2 * nodes), generator=rng),
            y=torch.randn(1, generator=rng),
        )
        for nodes in torch.randint(1, 10, (count,), generator=rng).tolist()
    ]
    ss.pack_graphs(graphs, folder / "packed", shard_size="20KB")
    return str(folder / "packed")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("data")
    images, graphs = (
        make_images(folder / "images", SAMPLES),
        make_graphs(folder / "graphs", SAMPLES),
    )
    more = make_images(folder / "more", SAMPLES // 3, seed=1)
    return {
        "images": {"url": images, "crop": CROP},
        "graphs": {"url": graphs},
        "mixture": {"url": {"images": images, "more": more}, "crop": CROP},
    }


def received(results: list[dict[str, Any]], name: str) -> list[tuple[Sample, bool]]:
    """Steps in their order, in each step the ranks in theirs; and whether a sample is real."""
    samples = []
    for step in zip(*(result[name]["batches"] for result in results), strict=True):
        for batch in step:
            mask = batch["mask"] or [True] * len(batch["keys"])
            both = zip(batch["keys"], batch["sums"], strict=True)
            samples += list(zip(both, mask, strict=True))
    return samples


def uninterrupted(setting: dict[str, Any], state: dict[str, Any]) -> list[Sample]:
    """The epoch that a state belongs to, from one process without workers."""
    shuffle = setting["shuffle"]
    is_mixture = isinstance(setting["url"], dict)
    names = ("lanes", "grain", "window")
    lanes = {name: state[name] for name in names if is_mixture or shuffle is True}
    dataset = ss.ShardDataset(
        ss.Mixture(setting["url"]) if is_mixture else setting["url"], batch_size=64, tail="exact",
        decode={"jpg": ss.RandomResizedCrop(CROP)} if "crop" in setting else None,
        world=ss.World(0, 1), shuffle=shuffle, **lanes,
    )  # fmt: skip
    return [
        sample
        for batch in ss.StreamLoader(dataset)
        for sample in zip(batch["__key__"], checksums(batch), strict=True)
    ]


@pytest.mark.parametrize(
    ("rules", "tail", "stops"),
    [
        (("windows, lanes derived", "full"), "exact", (2, 2, 1)),
        *(
            pytest.param(tuple(RULES), tail, stops, marks=pytest.mark.slow)
            for tail in ("drop", "pad", "exact")
            for stops in ((1, 1, 1), (4, 1, 1), (0, 4, 2), (4, 2, 0))
        ),
        # Less than a global batch is left for the last run.
        *(
            pytest.param(tuple(RULES), tail, (5, 1, 1), marks=pytest.mark.slow)
            for tail in ("pad", "exact")
        ),
    ],
)
def test_a_chain_of_topologies_gives_the_same_samples_to_the_bit(
    tmp_path: Path,
    datasets: dict[str, dict[str, Any]],
    rules: tuple[str, ...],
    tail: str,
    stops: tuple[int, int, int],
) -> None:
    settings: dict[str, dict[str, Any]] = {
        f"{data}, {rule}": {**datasets[data], **RULES[rule], "tail": tail, "sums": True}
        for data in datasets
        for rule in rules
    }
    delivered: dict[str, list[tuple[Sample, bool]]] = {name: [] for name in settings}
    states: dict[str, dict[str, Any]] = {}
    first: dict[str, dict[str, Any]] = {}
    for number, (link, stop) in enumerate(zip(CHAIN, (*stops, None), strict=True)):
        run = [
            {
                "name": name, **setting, "workers": link.workers, "batch": link.batch_size,
                **({} if stop is None else {"stop": stop}),
                **({"state": states[name]} if states else {}),
            }
            for name, setting in settings.items()
        ]  # fmt: skip
        results = forked(tmp_path / str(number), link.ranks, run)
        for name in settings:
            states[name], *others = (result[name]["state"] for result in results)
            assert all(other == states[name] for other in others), "ranks have different cursors"
            delivered[name] += received(results, name)
        first = first or dict(states)
    for name, setting in settings.items():
        assert states[name]["epoch"] == 1
        check(delivered[name], uninterrupted(setting, first[name]), tail)


def test_the_mixture_is_as_large_as_its_sources(datasets: dict[str, dict[str, Any]]) -> None:
    mixture = ss.Mixture(datasets["mixture"]["url"])
    dataset = ss.ShardDataset(mixture, batch_size=10, world=ss.World(0, 1), shuffle=True, window=16)
    assert len(dataset) == (SAMPLES + SAMPLES // 3) // 10
    assert dataset.course.first_cursor(ss.World(0, 1), 0).rule.lanes > 1


def check(delivered: list[tuple[Sample, bool]], expected: list[Sample], tail: str) -> None:
    """The chain against the uninterrupted run, up to the tail's rule in the last run."""
    real = [sample for sample, is_real in delivered if is_real]
    repeats = [sample for sample, is_real in delivered if not is_real]
    assert real == expected[: len(real)]
    assert repeats == (expected[: len(repeats)] if tail == "pad" else [])
    if tail == "drop":
        assert len(expected) - len(real) < CHAIN[-1].ranks * CHAIN[-1].batch_size
    else:
        assert len(real) == len(expected) >= SAMPLES
