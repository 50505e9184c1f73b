from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch_geometric.data import Data

from streamshard.codec.graph import GraphCodec
from tests.codec.graphs import DTYPES, assert_same, edges, graphs

CODEC = GraphCodec()


def round_trip(data: Any) -> Any:
    return CODEC.decode(CODEC.pack(data).data)


class TestRoundTrip:
    """What is packed comes back bit for bit."""

    @settings(deadline=None, max_examples=200)
    @given(graphs())
    def test_every_graph_comes_back(self, data: Any) -> None:
        packed = CODEC.pack(data)
        assert_same(CODEC.decode(packed.data), data)
        assert CODEC.pack(data) == packed

    @settings(deadline=None, max_examples=100)
    @given(graphs())
    def test_its_bytes_pack_as_it_does(self, data: Any) -> None:
        packed = CODEC.pack(data)
        again = CODEC.pack(packed.data)
        assert again.data == packed.data
        assert again.facts == packed.facts
        assert again.schema["layout"] == packed.schema["layout"]
        assert again.schema["fields"] == packed.schema["fields"]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_type_is_kept(self, dtype: torch.dtype) -> None:
        data = Data(x=torch.tensor([[0, 1], [1, 1]]).to(dtype), edge_index=edges((0, 1)))
        assert_same(round_trip(data), data)

    @pytest.mark.parametrize(
        "data",
        [
            Data(num_nodes=5),
            Data(num_nodes=5, edge_index=edges()),
            Data(num_nodes=5, edge_index=edges((0, 1), (1, 0))),  # node 4 has no edge
            Data(x=torch.zeros(3, 0)),
            Data(x=torch.zeros(1)),
            Data(x=torch.zeros(2, 3, 4), edge_index=edges((1, 0)), y=torch.tensor(1.5)),
            Data(pos=torch.zeros(4, 3), face=torch.zeros(3, 0, dtype=torch.int64)),
            Data(x=torch.arange(12.0).reshape(3, 4).T, edge_index=edges((0, 3))),
            Data(x=torch.zeros(2, 1), x0=torch.zeros(0, 4)),
            Data(x=torch.zeros(2, 1), num_nodes=2),
        ],
        ids=str,
    )
    def test_odd_graphs_come_back(self, data: Any) -> None:
        assert_same(round_trip(data), data)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_tensor_in_two_fields_comes_back_in_both(self, dtype: torch.dtype) -> None:
        x = torch.arange(6).reshape(3, 2).to(dtype)
        data = Data(x=x, x0=x)
        assert_same(round_trip(data), data)

    def test_a_field_with_a_gradient_is_detached(self) -> None:
        x = torch.arange(4.0).reshape(2, 2).requires_grad_()
        assert torch.equal(round_trip(Data(x=x)).x, x.detach())

    def test_int32_edges_become_int64(self) -> None:
        packed = CODEC.pack(Data(num_nodes=3, edge_index=edges((0, 2)).int()))
        assert torch.equal(CODEC.decode(packed.data).edge_index, edges((0, 2)))
        assert packed.schema["fields"]["edge_index"]["dtype"] == "int64"

    @pytest.mark.parametrize(
        "data",
        [
            Data(x=torch.zeros(3, 1), num_nodes=5),
            Data(edge_index=edges((0, 4)), node_attr=torch.zeros(1, 5), num_nodes=5),
            Data(edge_index=edges((0, 4)), num_node_types=torch.tensor(3), num_nodes=5),
        ],
        ids=["x is shorter", "node field is shorter", "a count with node in its name"],
    )
    def test_a_number_of_nodes_that_was_set_is_kept_or_refused(self, data: Any) -> None:
        try:
            packed = CODEC.pack(data)
        except ValueError:
            return
        assert packed.facts["nodes"] == 5
        assert CODEC.decode(packed.data).num_nodes == 5


class TestFacts:
    """What the index keeps of a graph, and what the manifest keeps of all."""

    def test_they_tell_sizes_and_increments(self) -> None:
        data = Data(
            x=torch.zeros(4, 7),
            edge_index=edges((0, 1), (1, 2), (2, 3)),
            edge_attr=torch.zeros(3, 2),
            y=torch.zeros(1),
            total=torch.tensor(2.0),
        )
        packed = CODEC.pack(data)
        base = packed.facts.pop("base")
        assert packed.facts == {
            "nodes": 4,
            "edges": 3,
            "rows:x": 4,
            "rows:edge_index": 3,
            "rows:edge_attr": 3,
            "rows:y": 1,
            "inc:edge_index": 4,
        }
        assert base == 8 + int.from_bytes(packed.data[:8], "little")
        assert packed.schema["num_nodes"] == {"": False}
        fields = packed.schema["fields"]
        assert list(fields) == list(data.to_dict())
        assert fields["x"] == {"dtype": "float32", "shape": [None, 7], "cat_dim": 0, "inc": 0}
        assert fields["edge_index"] == {
            "dtype": "int64",
            "shape": [2, None],
            "cat_dim": 1,
            "inc": 1,
        }
        assert fields["total"] == {"dtype": "float32", "shape": [], "cat_dim": None, "inc": 0}

    @settings(deadline=None, max_examples=100)
    @given(graphs())
    def test_every_field_is_found_by_arithmetic_alone(self, data: Any) -> None:
        packed = CODEC.pack(data)
        at, fields = packed.facts["base"], packed.schema["fields"]
        for name in packed.schema["layout"]:
            if name == "num_nodes":
                found = torch.frombuffer(bytearray(packed.data[at : at + 8]), dtype=torch.int64)
                assert int(found) == data.num_nodes
                at += 8
                continue
            dtype = getattr(torch, fields[name]["dtype"])
            rows = packed.facts.get(f"rows:{name}")
            shape: Any = [rows if side is None else side for side in fields[name]["shape"]]
            size = torch.Size(shape).numel() * dtype.itemsize
            if size:
                taken = torch.frombuffer(bytearray(packed.data[at : at + size]), dtype=dtype)
                assert torch.equal(taken.reshape(shape), data[name])
            at += size
        assert at == len(packed.data)

    def test_increments_of_any_class_are_recorded(self) -> None:
        class Pairs(Data):  # type: ignore[misc]
            def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
                return 7 if key == "partner" else super().__inc__(key, value, *args, **kwargs)

            def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
                return None if key == "stacked" else super().__cat_dim__(key, value)

        data = Pairs(x=torch.zeros(2, 1), partner=torch.tensor([1, 0]), stacked=torch.zeros(3))
        packed = CODEC.pack(data)
        assert packed.facts["inc:partner"] == 7
        assert packed.schema["fields"]["partner"]["inc"] == 1
        assert packed.schema["fields"]["stacked"]["cat_dim"] is None
        assert packed.schema["fields"]["stacked"]["shape"] == [3]

    def test_graphs_are_never_stacked(self) -> None:
        assert CODEC.form(CODEC.pack(Data(num_nodes=1)).schema) is None
