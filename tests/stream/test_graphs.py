"""Graph batches are PyG's own, tensor for tensor."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

import streamshard as ss

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
DTYPES += [torch.uint8, torch.bool]


@st.composite
def graph_lists(draw: st.DrawFn) -> list[Data]:
    """Graphs of one schema: with and without edges, isolated nodes, fields of every kind."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 8))
    extras = draw(st.sets(st.sampled_from(["edge_attr", "pos", "y", "z", "face", "my_index"])))
    dtype = draw(st.sampled_from(DTYPES))
    width = draw(st.integers(0, 4))
    explicit = draw(st.booleans())
    graphs = []
    for _ in range(count):
        nodes, edges = draw(st.integers(1, 6)), draw(st.integers(0, 8))
        data = Data(x=torch.randint(0, 2, (nodes, width)).to(dtype))
        data.edge_index = torch.randint(0, nodes, (2, edges))
        more = {
            "edge_attr": torch.randn(edges, 3),
            "pos": torch.randn(nodes, 2, 2),
            "y": torch.randn(1, 2),
            "z": torch.tensor(draw(st.integers(-5, 5))),
            "face": torch.randint(0, nodes, (3, draw(st.integers(0, 3)))),
            "my_index": torch.randint(0, nodes, (draw(st.integers(0, 3)),)),
        }
        for name in sorted(extras):
            data[name] = more[name]
        if explicit:
            data.num_nodes = nodes
        graphs.append(data)
    return graphs


def assert_equal(ours: Any, theirs: Any) -> None:
    """Every tensor of two batches, and of the tables by which they are taken apart."""
    assert set(ours.keys()) == set(theirs.keys())
    for name in theirs.keys():  # noqa: SIM118
        if name == "num_nodes":
            assert ours.num_nodes == theirs.num_nodes
            continue
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name
    for name in theirs._slice_dict:
        assert torch.equal(ours._slice_dict[name], theirs._slice_dict[name]), name
        assert torch.equal(ours._inc_dict[name], theirs._inc_dict[name]), name
    assert ours.num_graphs == theirs.num_graphs
    for one, other in zip(ours.to_data_list(), theirs.to_data_list(), strict=True):
        assert set(one.keys()) == set(other.keys())
        assert all(
            one.num_nodes == other.num_nodes if name == "num_nodes"
            else torch.equal(one[name], other[name])
            for name in other.keys()  # noqa: SIM118
        )  # fmt: skip


def check_parity(graphs: list[Data]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ss.pack_graphs(graphs, f"{folder}/packed", shard_size="4KB")
        dataset = ss.ShardDataset(
            f"{folder}/packed", batch_size=3, tail="exact", parts=("graph", "__key__"),
            world=ss.World(0, 1),
        )  # fmt: skip
        for batch, keys in ss.StreamLoader(dataset):
            originals = [graphs[int(key)] for key in keys]
            assert_equal(batch, Batch.from_data_list(originals))


@settings(max_examples=60, deadline=None)
@given(graph_lists())
def test_batches_equal_pygs_to_the_bit(graphs: list[Data]) -> None:
    check_parity(graphs)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(graph_lists())
def test_batches_equal_pygs_to_the_bit_in_the_long_form(graphs: list[Data]) -> None:
    check_parity(graphs)


class Pair(Data):  # type: ignore[misc]
    """Indices of its own, raised by a number of its own, along a dimension of its own."""

    def __inc__(self, key: str, value: Any, *args: Any) -> Any:
        return (
            int(self.anchors.shape[0]) * 2 if key == "link" else super().__inc__(key, value, *args)
        )

    def __cat_dim__(self, key: str, value: Any, *args: Any) -> Any:
        if key == "grid":
            return None
        return 1 if key == "wide" else super().__cat_dim__(key, value, *args)


def test_rules_of_a_subclass_are_kept(tmp_path: Any) -> None:
    graphs = [
        Pair(
            x=torch.randn(n, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64),
            anchors=torch.randn(n % 3, 2), link=torch.arange(n), wide=torch.randn(2, n, 3),
            grid=torch.randn(2, 2),
        )
        for n in (1, 2, 3, 4, 5)
    ]  # fmt: skip
    ss.pack_graphs(graphs, tmp_path / "packed", shuffle=False)
    dataset = ss.ShardDataset(tmp_path / "packed", batch_size=5, parts="graph")
    (batch,) = ss.StreamLoader(dataset)
    theirs = Batch.from_data_list(graphs)
    for name in ("link", "wide", "grid", "anchors"):
        assert torch.equal(batch[name], theirs[name]), name


def test_graphs_come_the_same_from_workers_and_from_memory_urls() -> None:
    graphs = [Data(x=torch.randn(n, 2), edge_index=torch.zeros(2, n).long()) for n in range(1, 40)]
    ss.pack_graphs(graphs, "memory://graphs-test", overwrite=True, shuffle=False)
    dataset = ss.ShardDataset("memory://graphs-test", batch_size=7, parts="graph", tail="exact")
    batches = list(ss.StreamLoader(dataset))
    for number, batch in enumerate(batches):
        assert_equal(batch, Batch.from_data_list(graphs[number * 7 : number * 7 + 7]))


def test_an_empty_batch_is_a_batch(tmp_path: Any) -> None:
    ss.pack_graphs(
        [Data(x=torch.randn(2, 3), edge_index=torch.zeros(2, 1).long())], tmp_path / "packed"
    )
    dataset = ss.ShardDataset(
        tmp_path / "packed", batch_size=4, parts="graph", tail="exact", world=ss.World(1, 2)
    )
    (batch,) = ss.StreamLoader(dataset)
    assert batch.num_graphs == 0
    assert batch.x.shape == (0, 3)
    assert batch.edge_index.shape == (2, 0)
    assert batch.ptr.tolist() == [0]
