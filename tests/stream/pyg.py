"""Graphs at random, and what it means that two batches are the same."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.uint8, torch.bool]


def indices(draw: st.DrawFn, below: int, *shape: int) -> torch.Tensor:
    """Numbers in [0, below); none where there is nothing to point at."""
    if not below:
        shape = (*shape[:-1], 0)
    values = torch.randint(0, max(below, 1), shape)
    return values * draw(st.sampled_from([1, 1, 0]))


class Own(Data):  # type: ignore[misc]
    """Indices raised by a number of its own, along a dimension of its own."""

    def __inc__(self, key: str, value: Any, *args: Any) -> Any:
        if key == "link":
            return int(self.anchors.shape[0]) * 2
        return super().__inc__(key, value, *args)

    def __cat_dim__(self, key: str, value: Any, *args: Any) -> Any:
        if key == "grid":
            return None
        return 1 if key == "wide" else super().__cat_dim__(key, value, *args)


@st.composite
def graph_lists(draw: st.DrawFn) -> list[Data]:
    """Graphs of one schema: with and without edges, isolated nodes, fields of every kind."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 8))
    names = ["edge_attr", "pos", "y", "z", "face", "my_index", "link", "wide", "grid"]
    extras = draw(st.sets(st.sampled_from(names)))
    dtype = draw(st.sampled_from(DTYPES))
    width = draw(st.integers(0, 4))
    explicit = draw(st.booleans())
    scale = draw(st.sampled_from([1, 100, 1000, 10**6, 10**12]))
    kind = Own if extras & {"link", "wide", "grid"} else Data
    graphs = []
    for _ in range(count):
        nodes, edges = draw(st.integers(1, 6)), draw(st.integers(0, 8))
        data = kind(x=torch.randint(0, 2, (nodes, width)).to(dtype))
        data.edge_index = torch.randint(0, nodes, (2, edges))
        more = {
            "edge_attr": torch.randn(edges, 3),
            "pos": torch.randn(nodes, 2, 2),
            "y": torch.randn(1, 2),
            "z": torch.tensor(draw(st.integers(-5, 5)) * scale),
            "face": torch.randint(0, nodes, (3, draw(st.integers(0, 3)))),
            "my_index": torch.randint(0, nodes, (draw(st.integers(0, 3)),)),
            "link": torch.arange(nodes),
            "wide": torch.randn(2, draw(st.integers(0, 3)), 3),
            "grid": torch.randn(2, 2),
        }
        if kind is Own:
            data.anchors = torch.randn(draw(st.integers(0, 3)), 2)
        for name in sorted(extras):
            data[name] = more[name]
        if explicit:
            data.num_nodes = nodes
        graphs.append(data)
    return graphs


@st.composite
def hetero_lists(draw: st.DrawFn) -> list[HeteroData]:
    """Graphs of one schema with several types, some of which a graph may have no node of."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    types = draw(st.lists(st.sampled_from(["paper", "author", "x_y"]), min_size=1, unique=True))
    pairs = [(one, other) for one in types for other in types]
    relations = draw(st.lists(st.sampled_from(pairs), max_size=3, unique=True))
    bare = draw(st.sets(st.sampled_from(types)))  # have num_nodes, and no x
    extras = draw(st.sets(st.sampled_from(["y", "edge_attr", "label", "more_index"])))
    graphs = []
    for _ in range(draw(st.integers(1, 6))):
        counts = {name: draw(st.integers(0, 5)) for name in types}
        counts[types[0]] += 1
        data = HeteroData()
        if "y" in extras:
            data.y = torch.randn(1, 3)
        for name, nodes in counts.items():
            _add_nodes(data[name], nodes, len(name), name in bare, extras)
        for one, other in relations:
            edges = draw(st.integers(0, 6)) if counts[one] and counts[other] else 0
            rows = [torch.randint(0, max(counts[end], 1), (edges,)) for end in (one, other)]
            _add_edges(data[one, "to", other], torch.stack(rows), extras)
        graphs.append(data)
    return graphs


def _add_nodes(store: Any, nodes: int, width: int, is_bare: bool, extras: set[str]) -> None:
    if is_bare:
        store.num_nodes = nodes
    else:
        store.x = torch.randn(nodes, width)
    if "label" in extras:
        store.label = torch.randint(0, 9, (nodes,))


def _add_edges(store: Any, index: torch.Tensor, extras: set[str]) -> None:
    store.edge_index = index
    if "edge_attr" in extras:
        store.edge_attr = torch.randn(index.shape[1], 2)
    if "more_index" in extras:
        store.more_index = index.flip(1)


def fields(data: Any) -> dict[tuple[Any, str], Any]:
    """Every value of every store."""
    return {
        (store._key, name): value for store in data.stores for name, value in dict(store).items()
    }


def tables(table: Any) -> dict[tuple[Any, str], Any]:
    """The tables of `_slice_dict` and `_inc_dict`, whichever store they are of."""
    flat: dict[tuple[Any, str], Any] = {}
    for key, value in table.items():
        if isinstance(value, torch.Tensor):
            flat[None, key] = value
        else:
            flat |= {(key, name): tensor for name, tensor in value.items()}
    return flat


def assert_same_values(ours: dict[Any, Any], theirs: dict[Any, Any]) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype, name
            assert ours[name].shape == value.shape, name
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name


def assert_same_batches(ours: Any, theirs: Any) -> None:
    """Every tensor of two batches, of the tables behind them, and of the graphs in them."""
    assert_same_values(fields(ours), fields(theirs))
    assert_same_values(tables(ours._slice_dict), tables(theirs._slice_dict))
    assert_same_values(tables(ours._inc_dict), tables(theirs._inc_dict))
    assert ours.num_graphs == theirs.num_graphs == len(ours)
    apart = ours.to_data_list()
    assert len(apart) == len(ours)
    try:
        expected = theirs.to_data_list()
    except KeyError:
        return  # of a type without fields PyG keeps no table, and needs one
    for one, other in zip(apart, expected, strict=True):
        assert_same_values(fields(one), fields(other))
    assert_same_values(fields(ours.get_example(0)), fields(theirs.get_example(0)))
