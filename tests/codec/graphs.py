"""Small graphs for the tests."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch_geometric.data import Data

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]


def edges(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()


def assert_same(found: Any, expected: Any) -> None:
    """The same fields, bit for bit, and the same number of nodes."""
    names = {name for name in [*found.keys(), *expected.keys()] if name != "num_nodes"}
    for name in names:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].shape == expected[name].shape, name
        assert torch.equal(found[name], expected[name]), name
    assert found.num_nodes == expected.num_nodes


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    nodes = draw(st.integers(1, 6))
    pair = st.tuples(*[st.integers(0, nodes - 1)] * 2)
    index = edges(*draw(st.lists(pair, max_size=8)))
    count = index.shape[1]
    dtypes = st.sampled_from(DTYPES)
    fields = {
        "x": torch.arange(nodes * 2).reshape(nodes, 2).to(draw(dtypes)),
        "edge_attr": torch.arange(count * 3).reshape(count, 3).to(draw(dtypes)),
        "y": torch.tensor(draw(st.integers(0, 100))).to(draw(dtypes)),
        "face": torch.zeros(3, draw(st.integers(0, 2)), dtype=torch.int64),
        "pos": torch.zeros(nodes, 3),
        "train_mask": torch.ones(nodes, dtype=torch.bool),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(fields))))
    data = Data(edge_index=index, **{name: fields[name] for name in sorted(chosen)})
    if not chosen & {"x", "pos"} or draw(st.booleans()):
        data.num_nodes = nodes
    return data
