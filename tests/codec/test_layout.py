"""A codec that has packed graphs before gives what a fresh one gives, to the byte and the word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

from streamshard.codec.graph import GraphCodec
from streamshard.codec.layout import Layout
from tests.codec.graphs import edges, graphs

NAN = float("nan")


def outcome(codec: GraphCodec, data: Any) -> Any:
    """All that `pack` says, or why it refuses."""
    try:
        packed = codec.pack(data)
    except (ValueError, TypeError) as error:
        return type(error), str(error)
    return packed, list(packed.schema["fields"])


def assert_no_memory(before: list[Any], data: Any, **options: Any) -> None:
    """The law: what was packed before makes no difference."""
    codec = GraphCodec(**options)
    for graph in before:
        outcome(codec, graph)
    assert outcome(codec, data) == outcome(GraphCodec(**options), data)


@settings(deadline=None, max_examples=150)
@given(st.lists(graphs(), max_size=2), graphs(), st.booleans())
def test_graphs_before_make_no_difference(before: list[Any], data: Any, narrow: bool) -> None:
    assert_no_memory(before, data, narrow=narrow)


def molecule(nodes: int = 3, **changes: Any) -> Any:
    fields = {
        "x": torch.arange(nodes * 2.0).reshape(nodes, 2),
        "edge_index": edges((0, nodes - 1), (nodes - 1, 0)),
        "face": torch.tensor([[0], [0], [nodes - 1]]),
        "pair_index": torch.tensor([nodes + 5, 0]),
        "y": torch.tensor([float(nodes)]),
        "100%": torch.tensor(nodes),
        '"%d"': torch.ones(nodes, dtype=torch.bool),
    }
    return Data(**{name: v for name, v in {**fields, **changes}.items() if v is not None})


class Shifted(Data):  # type: ignore[misc]
    """With a rule of its own."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 7 if key == "y" else super().__inc__(key, value, *args, **kwargs)


ODD = {
    "like the first": molecule(8),
    "one node": molecule(1),
    "without edges": molecule(4, edge_index=edges()),
    "not contiguous": molecule(2, x=torch.arange(4.0).reshape(2, 2).T),
    "gradient": molecule(x=torch.zeros(3, 2, requires_grad=True)),
    "parameter": molecule(x=torch.nn.Parameter(torch.zeros(3, 2))),
    "conjugate": molecule(x=torch.ones(3, 2, dtype=torch.complex64).conj()),
    "negative bit": molecule(x=torch.ones(3, 2, dtype=torch.complex64).conj().imag),
    "bfloat16": molecule(x=torch.zeros(3, 2).bfloat16()),
    "double": molecule(x=torch.zeros(3, 2).double()),
    "sparse": molecule(x=torch.eye(3).to_sparse()),
    "wider": molecule(x=torch.zeros(3, 5)),
    "flat": molecule(x=torch.zeros(3)),
    "deep": molecule(x=torch.zeros(3, 2, 1)),
    "longer face": molecule(face=torch.zeros(4, 1).long()),
    "a number for a row": molecule(y=torch.tensor(1.0)),
    "a row for a number": molecule().update({"100%": torch.tensor([1])}),
    "text": molecule(y="text"),
    "lacking": molecule(y=None),
    "more": molecule(z=torch.zeros(3)),
    "another order": Data(**dict(reversed(list(molecule().to_dict().items())))),
    "nodes set": molecule(num_nodes=3),
    "nodes set wrong": molecule(num_nodes=4),
    "nodes set to a tensor": molecule(num_nodes=torch.tensor(3)),
    "no nodes": molecule(1, x=torch.zeros(0, 2), edge_index=edges(), face=torch.zeros(3, 0).long()),
    "int32 edges": molecule(edge_index=edges((0, 1)).int()),
    "edge beyond": molecule(edge_index=edges((0, 3), (1, 0))),
    "edge below": molecule(edge_index=edges((0, -1), (1, 0))),
    "face beyond": molecule(face=torch.tensor([[0], [1], [3]])),
    "index below": molecule(pair_index=torch.tensor([0, -1])),
    "index below, in bytes": molecule(pair_index=torch.tensor([0, -1], dtype=torch.int8)),
    "nan": molecule(x=torch.full((3, 2), NAN)),
    "infinity": molecule(y=torch.tensor([float("-inf")])),
    "large": molecule(y=torch.tensor([3e38, 3e38])),
    "batch": molecule(batch=torch.tensor([0, 0, 1])),
    "a class of its own": Shifted(**molecule().to_dict()),
    "types": HeteroData(paper={"x": torch.zeros(2, 3)}),
    "none": None,
    "bytes": GraphCodec().pack(molecule()).data,
    "bytes of no graph": b"odd",
}


@pytest.mark.parametrize("options", [{}, {"narrow": True}, {"allow_nan": True}], ids=str)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_graph_behind_others_is_taken_or_refused_as_alone(
    name: str, options: dict[str, bool]
) -> None:
    assert_no_memory([molecule(3), molecule(5)], ODD[name], **options)
    assert_no_memory([ODD[name]], molecule(6), **options)
    assert_no_memory([ODD[name]], ODD[name], **options)


def test_graphs_that_are_alike_are_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = GraphCodec()
    first = codec.pack(molecule(3))
    monkeypatch.setattr("streamshard.codec.graph.take_apart", None)
    for nodes in (1, 2, 30):
        assert codec.pack(molecule(nodes)).schema is first.schema
    with pytest.raises(TypeError):
        codec.pack(molecule(3, z=torch.zeros(1)))


@pytest.mark.parametrize("name", ["a class of its own", "batch", "bfloat16", "int32 edges"])
def test_no_layout_is_made_of_a_graph_that_may_have_other_rules(name: str) -> None:
    codec = GraphCodec()
    codec.pack(ODD[name])
    assert codec._layout is None
    codec.pack(molecule())
    assert isinstance(codec._layout, Layout)
