"""Streams of graphs within a budget: the same batches whoever makes them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torchdata.stateful_dataloader import StatefulDataLoader

import streamshard as ss
from streamshard.plan.budget import Batches
from streamshard.plan.share import Tail
from streamshard.stream.board import Board
from tests.oracle import Graph, budget_batches
from tests.stream.data import collect
from tests.stream.ranks import forked
from tests.stream.test_in_step import sequence

COUNT = 400
NODES = [16 + number * number * 7919 % 104729 % 15 for number in range(COUNT)]
EDGES = [2 * (nodes - 1 + number % 4) for number, nodes in enumerate(NODES)]
BUDGET = ss.Budget(max_nodes=150, max_edges=330)
SIX_LANES: Any = {"shuffle": True, "lanes": 6, "window": 50}


def graph(nodes: int, edges: int, number: int) -> Data:
    index = torch.arange(2 * edges).reshape(2, edges) % nodes
    return Data(x=torch.full((nodes, 1), float(number)), edge_index=index)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 graphs like molecules, in several shards."""
    folder = tmp_path_factory.mktemp("graphs") / "packed"
    sizes = zip(NODES, EDGES, range(COUNT), strict=True)
    ss.pack_graphs([graph(*each) for each in sizes], folder, shard_size="100KB", shuffle=False)
    return str(folder)


def epochs_of(loader: ss.StreamLoader, count: int) -> list[list[list[str]]]:
    """The keys of every batch, epoch by epoch."""
    with loader:
        return [collect(loader) for _ in range(count)]


def test_batches_are_those_of_the_oracle(url: str) -> None:
    dataset = ss.ShardDataset(url, budget=BUDGET, tail="exact", **SIX_LANES)
    one_by_one = ss.ShardDataset(url, batch_size=1, grain=1, **SIX_LANES)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        one_by_one.set_epoch(epoch)
        keys = [key for (key,) in collect(one_by_one)]
        graphs = [
            Graph(position, NODES[int(key)], EDGES[int(key)]) for position, key in enumerate(keys)
        ]
        expected = budget_batches(graphs, lane_count=6, max_nodes=150, max_edges=330)
        assert collect(dataset) == [[keys[position] for position in batch] for batch in expected]
        assert len(dataset) == len(expected)


def test_threads_of_one_process_plan_an_epoch_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop asks for its epoch while a thread ahead of it asks for the next ones."""
    course = ss.ShardDataset(url, budget=BUDGET, **SIX_LANES).course
    plan: Any = course.plan
    planned, make = list[int](), plan._plan

    def slow(rule: Any, epoch: int) -> Any:
        planned.append(epoch)
        time.sleep(0.01)
        return make(rule, epoch)

    monkeypatch.setattr(plan, "_plan", slow)
    rule = course.first_cursor(ss.World(), 0).rule
    for epoch in range(5):
        with ThreadPoolExecutor(4) as threads:
            found = [threads.submit(plan.batches, rule, epoch) for _ in range(4)]
        assert len({id(each.result()) for each in found}) == 1
    assert planned == [*range(5)]


def test_a_batch_is_the_batch_of_its_graphs(url: str) -> None:
    for batch in ss.ShardDataset(url, budget=BUDGET, tail="exact", shuffle=True):
        numbers = [int(key) for key in batch["__key__"]]
        assert batch["graph"].num_graphs == len(numbers)
        nodes = [NODES[number] for number in numbers]
        assert batch["graph"].ptr.diff().tolist() == nodes
        assert batch["graph"].num_nodes <= 150
        assert batch["graph"].num_edges == sum(EDGES[number] for number in numbers) <= 330
        assert torch.equal(
            batch["graph"].x[:, 0], torch.tensor(numbers).repeat_interleave(torch.tensor(nodes))
        )


@pytest.mark.parametrize("tail", ["drop", "pad", "exact"])
@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_ranks_together_deliver_every_graph_in_equal_steps(
    url: str, tail: Tail, shuffle: Any
) -> None:
    asked: Any = {"budget": BUDGET, "shuffle": shuffle, "parts": ("__key__", "__mask__")}
    if shuffle is True:
        asked |= SIX_LANES
    whole = ss.ShardDataset(url, tail="exact", world=ss.World(0, 1), **asked)
    expected = [keys for keys, _ in whole]
    assert sorted(key for keys in expected for key in keys) == [f"{n:06d}" for n in range(COUNT)]
    ranks = [list(ss.ShardDataset(url, tail=tail, world=ss.World(r, 3), **asked)) for r in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    flat = [(keys, mask.tolist()) for step in zip(*ranks, strict=True) for keys, mask in step]
    over = len(expected) % 3
    assert over, "the last step is to be incomplete"
    real = [(keys, [True] * len(keys)) for keys in expected]
    more: dict[str, Any] = {
        "drop": [],
        "exact": [([], [])] * (3 - over),
        "pad": [(keys, [False] * len(keys)) for keys in expected[: 3 - over]],
    }
    assert flat == real[: len(real) - over if tail == "drop" else len(real)] + more[tail]


@pytest.mark.parametrize("tail", ["drop", "exact"])
def test_a_stop_after_any_step_resumes_on_any_topology(url: str, tail: Tail) -> None:
    def made(ranks: int, workers: int = 0) -> list[ss.StreamLoader]:
        datasets = [
            ss.ShardDataset(url, budget=BUDGET, tail=tail, world=ss.World(r, ranks), **SIX_LANES)
            for r in range(ranks)
        ]
        return [ss.StreamLoader(dataset, num_workers=workers) for dataset in datasets]

    expected = collect(made(1)[0])
    for taken in range(0, len(expected) // 2 - 1, 3):
        first, second = made(2), made(3, workers=2 if taken == 6 else 0)
        iterators = [iter(loader) for loader in first]
        received = [next(each)["__key__"] for _ in range(taken) for each in iterators]
        states = [loader.state_dict() for loader in first]
        assert states[0] == states[1]
        assert states[0]["position"] == 2 * taken
        for loader in second:
            loader.load_state_dict(states[0])
            assert loader.steps_left <= len(loader)
        steps = zip(*(collect(loader) for loader in second), strict=True)
        received += [keys for step in steps for keys in step if keys]
        for loader in second:
            loader.close()
        assert received == expected[: len(received)]
        assert len(expected) - len(received) < (3 if tail == "drop" else 1)


def test_augmentations_belong_to_the_sample_not_to_the_topology(url: str) -> None:
    def noisy(sample: dict[str, Any]) -> dict[str, Any]:
        return {"noise": torch.rand(2)}

    def noise(ranks: int, workers: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for rank in range(ranks):
            dataset = ss.ShardDataset(
                url, budget=BUDGET, tail="exact", transform=noisy, world=ss.World(rank, ranks),
                **SIX_LANES,
            )  # fmt: skip
            with ss.StreamLoader(dataset, num_workers=workers) as loader:
                for batch in loader:
                    found |= dict(zip(batch["__key__"], batch["noise"].tolist(), strict=True))
        return found

    assert noise(1, 0) == noise(3, 0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_go_on_into_epochs_of_other_lengths(url: str, workers: int) -> None:
    asked: Any = {"budget": ss.Budget(max_nodes=90), "tail": "exact", **SIX_LANES}
    expected = epochs_of(ss.StreamLoader(ss.ShardDataset(url, **asked)), 5)
    lengths = [len(batches) for batches in expected]
    assert len(set(lengths)) > 1
    with ss.StreamLoader(ss.ShardDataset(url, **asked), num_workers=workers) as loader:
        for epoch, length in enumerate(lengths):
            assert (loader.epoch, len(loader), loader.steps_left) == (epoch, length, length)
            assert collect(loader) == expected[epoch]


def test_workers_that_rest_are_told_when_an_epoch_has_a_step_for_them(url: str) -> None:
    """Epochs of few steps, and more workers than most of them have."""
    asked: Any = {"budget": ss.Budget(max_nodes=3_057), "tail": "exact", "shuffle": "full"}
    expected = epochs_of(ss.StreamLoader(ss.ShardDataset(url, **asked)), 30)
    lengths = [len(batches) for batches in expected]
    most = max(lengths)
    # Somebody rests through two epochs and more, and has a step after that.
    rests = "".join("r" if length < most else "s" for length in lengths)
    assert "srrs" in rests, lengths
    loader = ss.StreamLoader(ss.ShardDataset(url, **asked), num_workers=most)
    assert epochs_of(loader, 30) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_plain_dataloader_gives_the_same_batches(url: str, workers: int) -> None:
    dataset = ss.ShardDataset(url, budget=BUDGET, tail="exact", **SIX_LANES)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, collate_fn=lambda batch: batch
    )
    expected = epochs_of(ss.StreamLoader(dataset), 2)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert len(loader) == len(expected[epoch])
        assert collect(loader) == expected[epoch]


@pytest.mark.filterwarnings("ignore")  # torchdata's
def test_a_stateful_dataloader_goes_on_where_it_was(url: str) -> None:
    dataset = ss.ShardDataset(url, budget=BUDGET, tail="exact", **SIX_LANES)

    def loader() -> Any:
        return StatefulDataLoader(
            dataset, batch_size=None, num_workers=2, collate_fn=lambda batch: batch
        )

    expected = collect(dataset)
    first, second = loader(), loader()
    iterator = iter(first)
    received = [next(iterator)["__key__"] for _ in range(5)]
    state = first.state_dict()
    del iterator
    second.load_state_dict(state)
    assert received + collect(second) == expected


def test_spawned_workers_give_the_same_batches(url: str) -> None:
    dataset = ss.ShardDataset(url, budget=BUDGET, tail="exact", **SIX_LANES)
    expected = epochs_of(ss.StreamLoader(dataset), 2)
    loader = ss.StreamLoader(dataset, num_workers=2, start_method="spawn")
    assert epochs_of(loader, 2) == expected


def test_a_pickled_dataset_gives_the_same_batches(url: str) -> None:
    dataset = ss.ShardDataset(url, budget=BUDGET, tail="exact", **SIX_LANES)
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    assert collect(pickle.loads(data)) == collect(dataset)


class Counted:
    """A plan that says how often it was made."""

    def __init__(self) -> None:
        self.calls = multiprocessing.Value("i", 0)

    def __call__(self) -> Batches:
        with self.calls:
            self.calls.value += 1
        return Batches(np.arange(7, dtype=np.int32), np.array([3, 7]), 0.5)


def ask(board: Board, plan: Counted, answers: Any) -> None:
    for epoch in range(2):
        batches = board.find(epoch, f"epoch {epoch}", plan)
        answers.put((batches.members.tolist(), batches.ends.tolist(), batches.fill))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_an_epoch_is_planned_once_for_all_processes(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    board, plan, answers = Board.new(7), Counted(), context.SimpleQueue()
    plan.calls = context.Value("i", 0)
    processes = [context.Process(target=ask, args=(board, plan, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [answers.get() for _ in range(4)] == [([*range(7)], [3, 7], 0.5)] * 4
    assert plan.calls.value == 2


def die() -> Batches:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_process_that_is_killed_while_it_plans_leaves_the_plan_to_others() -> None:
    board = Board.new(7)
    process = multiprocessing.get_context("fork").Process(target=board.find, args=(0, "a", die))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(board.find(0, "a", Counted())) == 2


def test_a_board_tells_plans_of_other_rules_apart() -> None:
    board, plan = Board.new(7), Counted()
    for name in ("a", "a", "b", "a"):
        board.find(0, name, plan)
    assert plan.calls.value == 3


def test_views_are_cut_by_their_own_sizes(url: str) -> None:
    dataset = ss.ShardDataset(url, budget=BUDGET, tail="exact", shuffle=True)
    small = dataset.select(where=lambda columns: columns["graph:nodes"] <= 20)
    for view in (small, dataset[37:301], small[5:50], *dataset.split(a=0.3, b=0.7).values()):
        numbers = [int(key) for keys in collect(view) for key in keys]
        assert len(numbers) == len(set(numbers)) == sum(view.source.view.counts)
        for keys in collect(view):
            assert sum(NODES[int(key)] for key in keys) <= 150
        assert view.fill > 0.75


def test_a_graph_above_the_budget_is_named_before_anything_is_read(url: str) -> None:
    limit = 28
    large = [n for n in range(COUNT) if NODES[n] > limit]
    says = (
        rf"{len(large)} of 400 graphs are larger than 28 nodes; the first is {large[0]:06d}, "
        rf"with {NODES[large[0]]} nodes and {EDGES[large[0]]} edges: .*oversize=\"alone\""
    )
    with pytest.raises(ss.errors.UsageError, match=says):
        ss.ShardDataset(url, budget=ss.Budget(max_nodes=limit))
    fitting = ss.ShardDataset(url, budget=BUDGET).select(
        where=lambda columns: columns["graph:nodes"] > 20
    )
    with pytest.raises(ss.errors.UsageError, match="larger than 20 nodes or 99 edges"):
        ss.ShardDataset(url, budget=ss.Budget(20, 99))
    assert len(fitting)


def test_a_graph_above_the_budget_is_alone_where_that_is_asked_for(url: str) -> None:
    budget = ss.Budget(max_nodes=28, oversize="alone")
    batches = collect(ss.ShardDataset(url, budget=budget, tail="exact", shuffle=True))
    alone = {int(keys[0]) for keys in batches if sum(NODES[int(key)] for key in keys) > 28}
    assert alone == {number for number in range(COUNT) if NODES[number] > 28}
    assert all(len(keys) == 1 for keys in batches if NODES[int(keys[0])] > 28)


def test_the_fill_is_that_of_the_epoch_that_was_set(url: str) -> None:
    dataset = ss.ShardDataset(url, budget=BUDGET, tail="exact", **SIX_LANES)
    fills = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        loads = [
            max(sum(NODES[int(k)] for k in keys) / 150, sum(EDGES[int(k)] for k in keys) / 330)
            for keys in collect(dataset)
        ]
        assert dataset.fill == pytest.approx(sum(loads) / len(loads))
        fills.append(dataset.fill)
    assert len(set(fills)) > 1
    with pytest.raises(ss.errors.UsageError, match="there is none"):
        _ = ss.ShardDataset(url, batch_size=4).fill


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "either batch_size= or budget="),
        ({"batch_size": 4, "budget": BUDGET}, "either batch_size= or budget="),
        ({"budget": BUDGET, "shuffle": True, "grain": 4}, "grain= has no meaning"),
        ({"budget": BUDGET, "lanes": 4}, "lanes= has a meaning only with shuffle=True"),
        ({"budget": BUDGET, "tail": "keep"}, "tail is 'keep'"),
    ],
)
def test_what_makes_no_sense_is_refused(url: str, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ss.errors.UsageError, match=re.escape(says)):
        ss.ShardDataset(url, **asked)


def test_a_mixture_and_a_dataset_without_graphs_are_refused(url: str, tmp_path: Path) -> None:
    with ss.ShardWriter(tmp_path / "own") as writer:
        writer.write({"__key__": "1", "cls": 3})
    with pytest.raises(ss.errors.UsageError, match=r"own has no part 'graph'.* batch_size="):
        ss.ShardDataset(tmp_path / "own", budget=BUDGET)
    with pytest.raises(ss.errors.UsageError, match="a mixture can't be cut by a budget"):
        ss.ShardDataset(ss.Mixture({"one": url}), budget=BUDGET)


def test_drop_with_fewer_batches_than_ranks_is_refused(url: str) -> None:
    dataset = ss.ShardDataset(url, budget=ss.Budget(max_nodes=9_000), world=ss.World(0, 3))
    with pytest.raises(ss.errors.UsageError, match=r"makes 2 batches .*fewer than 3 ranks"):
        len(dataset)


def test_a_state_of_another_budget_is_refused(url: str) -> None:
    state = ss.StreamLoader(ss.ShardDataset(url, budget=BUDGET)).state_dict()
    others: Any = ({"batch_size": 4}, {"budget": ss.Budget(max_nodes=150)})
    for other in others:
        loader = ss.StreamLoader(ss.ShardDataset(url, **other))
        with pytest.raises(ss.errors.CursorError, match=r"max_edges=330.*this dataset has"):
            loader.load_state_dict(state)
    state = ss.StreamLoader(ss.ShardDataset(url, batch_size=4)).state_dict()
    with pytest.raises(ss.errors.CursorError, match=r"budget=None.*max_edges=330"):
        ss.StreamLoader(ss.ShardDataset(url, budget=BUDGET)).load_state_dict(state)


def test_ranks_of_torchrun_take_equal_steps_and_one_process_goes_on(
    url: str, tmp_path: Path
) -> None:
    limits = {"max_nodes": 150, "max_edges": 330, "oversize": "error"}
    base = {"url": url, "budget": limits, "shuffle": True, "workers": 1}
    first = forked(
        tmp_path / "first", 2,
        [
            {**base, "name": f"{tail}-{stop}", "tail": tail, "stop": stop}
            for tail in ("drop", "pad", "exact") for stop in (None, 5)
        ],
    )  # fmt: skip
    expected = [
        (key, True)
        for keys in collect(
            ss.ShardDataset(url, budget=BUDGET, tail="exact", **SIX_LANES | {"window": 64})
        )
        for key in keys
    ]
    assert sequence(first, "exact-None") == expected
    padded = sequence(first, "pad-None")
    assert padded[: len(expected)] == expected
    assert not any(real for _, real in padded[len(expected) :])
    dropped = sequence(first, "drop-None")
    assert dropped == expected[: len(dropped)]
    state = first[0]["exact-5"]["state"]
    assert state == first[1]["exact-5"]["state"]
    rest = ss.StreamLoader(
        ss.ShardDataset(url, budget=BUDGET, tail="exact", shuffle=True, window=64)
    )
    rest.load_state_dict(state)
    received = sequence(first, "exact-5")
    assert received + [(key, True) for keys in collect(rest) for key in keys] == expected
