from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch_geometric.data import Data, HeteroData

from streamshard.codec.graph import GraphCodec
from tests.codec.graphs import DTYPES, assert_same, edges

CODEC = GraphCodec()
X = torch.zeros(2, 1)


def hetero(
    edge: tuple[int, int],
    *,
    paper: int | None = 4,
    name: str = "note",
    x: torch.Tensor | None = None,
) -> Any:
    """Two authors, some papers, and one edge between them."""
    data = HeteroData()
    data["author"].x = X
    if paper is not None:
        data["paper"].x = torch.zeros(paper, 1) if x is None else x
    data[name].num_nodes = 1
    data["author", "writes", "paper"].edge_index = edges(edge)
    return data


class TestRefused:
    """What PyG takes in silence and batches wrongly has a name here."""

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (Data(x=X, edge_index=edges((0, 5))), "edge_index points at node 5"),
            (Data(x=X, edge_index=edges((2, 0))), "edge_index points at node 2"),
            (Data(x=X, edge_index=edges((0, -1))), "points at node -1 of a graph of 2 nodes"),
            (Data(x=X, edge_index=edges((0, 1)).to(torch.uint8)), "edge_index is torch.uint8"),
            (Data(x=X, edge_index=edges((0, 1)).to(torch.int16)), "edge_index is torch.int16"),
            (Data(x=X, edge_index=edges((0, 1)).float()), "edge_index is torch.float32"),
            (Data(x=X, edge_index=edges((0, 1)).T.repeat(1, 2)), r"of shape \[1, 4\]"),
            (Data(x=X, edge_index=torch.zeros(2, dtype=torch.int64)), r"of shape \[2\]"),
            (Data(x=X, face=torch.tensor([[0], [1], [2]])), "face points at 2 of a graph of 2"),
            (Data(x=X, face=torch.tensor([[0], [1], [-1]])), "face points at -1 of a graph of 2"),
            (Data(x=X, my_index=torch.tensor([0, -2])), "my_index points at -2"),
            (Data(x=torch.tensor([[float("nan")]])), "field 'x' holds NaN"),
            (hetero(edge=(2, 0)), "author/writes/paper/edge_index points at node 2 of a graph of"),
            (hetero(edge=(0, 4)), "author/writes/paper/edge_index points at node 4 of a graph of"),
            (hetero(edge=(0, -1)), "author/writes/paper/edge_index points at node -1"),
            (hetero(edge=(0, 0), paper=None), "lead to nodes of unknown type 'paper'"),
            (hetero(edge=(0, 0), name="a/b"), "type 'a/b'"),
            (hetero(edge=(0, 0), x=torch.full((4, 1), float("nan"))), "field 'paper/x' holds NaN"),
            (Data(x=X, y=torch.tensor(float("inf"))), "field 'y' holds NaN or infinity"),
            (Data(x=X, z=torch.tensor(complex(0, float("inf")))), "field 'z' holds NaN"),
            (Data(num_nodes=0), "a graph without nodes"),
            (Data(x=torch.zeros(0, 3), edge_index=edges()), "a graph without nodes"),
            (Data(num_nodes=-3), "nodes"),
            (Data(edge_index=edges((0, 1))), "the number of nodes is not known"),
            (Data(), "the number of nodes is not known"),
            (Data(y=torch.tensor(1)), "the number of nodes is not known"),
            (Data(x=X, adj=torch.eye(2).to_sparse()), "field 'adj' is a Tensor, not a dense"),
            (Data(x=X, name="water"), "field 'name' is a str"),
            (Data(x=X, count=3), "field 'count' is a int"),
            (Data(x=X, parts=[X, X]), "field 'parts' is a list"),
            (Data(x=X, array=X.numpy()), "field 'array' is a ndarray"),
            (Data(x=torch.tensor(3.0)), "x"),
            (Data(edge_index=edges((0, 0)), node_count=torch.tensor(3)), "node"),
            (HeteroData(), "a HeteroData without node types"),
            ({"x": X}, "dict is not a torch_geometric.data.Data"),
            (None, "NoneType is not"),
            (b"garbage", "not a whole safetensors file"),
        ],
        ids=lambda value: str(value)[-60:],
    )
    def test_by_name(self, data: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CODEC.pack(data)

    def test_unless_it_is_asked_for(self) -> None:
        tolerant = GraphCodec(allow_empty=True, allow_nan=True)
        empty = Data(x=torch.zeros(0, 3), edge_index=edges())
        assert_same(tolerant.decode(tolerant.pack(empty).data), empty)
        packed = tolerant.pack(Data(x=torch.tensor([[float("nan")]])))
        assert tolerant.decode(packed.data).x.isnan().all()

    @pytest.mark.parametrize(
        "tensors",
        [
            {"edge_index": edges((0, 5)), "num_nodes": torch.tensor(2)},
            {"edge_index": edges((0, 1))},
            {"num_nodes": torch.zeros(2, dtype=torch.int64)},
            {"x": torch.tensor([[float("nan")]])},
            {"x": torch.zeros(2, 1), "num_nodes": torch.tensor(5)},
        ],
        ids=["edge", "unknown nodes", "two numbers", "NaN", "contradiction"],
    )
    def test_in_bytes_too(self, tensors: dict[str, torch.Tensor]) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - each in its own words
            CODEC.pack(save(tensors))

    def test_bytes_with_int32_edges_are_not_called_int64(self) -> None:
        data = save({"edge_index": edges((0, 1)).int(), "num_nodes": torch.tensor(2)})
        try:
            packed = CODEC.pack(data)
        except ValueError:
            return
        found = CODEC.decode(packed.data).edge_index
        assert packed.schema["fields"]["edge_index"]["dtype"] == str(found.dtype)[6:]


class TestMerge:
    """All graphs of a dataset agree in what batches rely on."""

    FIRST = Data(x=torch.zeros(2, 3), edge_index=edges((0, 1)))

    def merged(self, one: Any, other: Any) -> Any:
        return CODEC.merge(CODEC.pack(one).schema, CODEC.pack(other).schema)

    def test_sizes_may_differ(self) -> None:
        other = Data(x=torch.zeros(9, 3), edge_index=edges())
        assert self.merged(self.FIRST, other) == CODEC.pack(self.FIRST).schema

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (Data(x=torch.zeros(2, 4), edge_index=edges()), r"field 'x' has shape \[None, 4\]"),
            (Data(x=torch.zeros(2), edge_index=edges()), r"field 'x' has shape \[None\]"),
            (Data(x=torch.zeros(2, 3)), "field 'edge_index' is in some graphs only"),
            (
                Data(x=torch.zeros(2, 3), edge_index=edges(), y=torch.tensor(1)),
                "field 'y' is in some graphs only",
            ),
            *(
                (
                    Data(x=torch.zeros(2, 3, dtype=dtype), edge_index=edges()),
                    rf"field 'x' has dtype {str(dtype)[6:]}, in the graphs before float32",
                )
                for dtype in DTYPES
                if dtype != torch.float32
            ),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_differs_is_told_by_field(self, other: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.merged(self.FIRST, other)

    def test_a_field_that_is_incremented_once_is_always_incremented(self) -> None:
        class Sometimes(Data):  # type: ignore[misc]
            def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
                return int(self.by) if key == "z" else super().__inc__(key, value, *args, **kwargs)

        never, ever = (
            Sometimes(x=torch.zeros(1), z=torch.zeros(1), by=torch.tensor(by)) for by in (0, 4)
        )
        for pair in ((never, ever), (ever, never)):
            assert self.merged(*pair)["fields"]["z"]["inc"] == 1
        assert self.merged(never, never)["fields"]["z"]["inc"] == 0

    def test_types_must_be_the_same(self) -> None:
        with pytest.raises(ValueError, match=r"node types .*, in the graphs before"):
            self.merged(hetero((0, 0)), hetero((0, 0), name="other"))
        with pytest.raises(ValueError, match=r"node types .*, in the graphs before"):
            self.merged(self.FIRST, hetero((0, 0)))

    def test_a_number_of_nodes_that_was_ever_set_is_kept_in_mind(self) -> None:
        without = Data(x=torch.zeros(2, 1))
        having = Data(x=torch.zeros(2, 1), num_nodes=2)
        assert self.merged(without, having)["num_nodes"] == {"": True}
        assert self.merged(without, without)["num_nodes"] == {"": False}
