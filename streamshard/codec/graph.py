"""A graph: one safetensors part, typed raw arrays, to a PyG `Data` and back.

How a field is batched is not in PyG's bytes but in its classes, so it is asked for at pack: the
dimension along which graphs are concatenated (`__cat_dim__`) and what is added to the indices of
the graphs behind (`__inc__`). The first is the same for every graph and goes into the schema; the
second is a number for each graph and goes into the index, as do the sizes from which the place of
every field follows, so that a batch is assembled without parsing anything per graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from streamshard.codec.base import Facts, Form, Packed, Schema
from streamshard.codec.tensor import decode_tensors, encode_tensors

if TYPE_CHECKING:  # PyG takes seconds to import, and image users never need it
    from torch_geometric.data import Data

NODES = "num_nodes"
_NODE_FIELDS = {"x", "feat", "pos", "batch", "node_type", "n_id"}  # one row for each node


class GraphCodec:
    """A graph with tensor fields.

    Facts in the index: `nodes`, `edges`, `base` (bytes in front of the first field), for each field
    that is concatenated `rows:FIELD` (its length along the dimension), and `inc:FIELD` where it is
    not zero. The schema has `fields`, in the order of the `Data`: dtype, shape with null for the
    dimension that varies, `cat_dim` (null where graphs are stacked) and `inc`, whether indices are
    incremented; `layout`, the fields in the order of the bytes; and `num_nodes`, whether the `Data`
    had it set.
    """

    name = "graph"

    def __init__(self, *, allow_empty: bool = False, allow_nan: bool = False) -> None:
        """Make the codec.

        Args:
            allow_empty: Take graphs without nodes.
            allow_nan: Take NaN and infinity.
        """
        self._allow_empty, self._allow_nan = allow_empty, allow_nan

    def pack(self, value: Any) -> Packed:
        """See `Codec`: takes a `Data`, or the bytes of one."""
        data = self.decode(value) if isinstance(value, bytes) else value
        fields = dict(self._fields(data))
        nodes = _count_nodes(data, fields)
        self._check(data, fields, nodes)
        if isinstance(value, bytes):
            _check_bytes(value, fields, nodes)
        tensors = {**fields, NODES: torch.tensor(nodes)}
        encoded = value if isinstance(value, bytes) else encode_tensors(tensors)
        base, layout = _read_layout(encoded)
        facts: Facts = {"nodes": nodes, "edges": _count_edges(data), "base": base}
        schema: Schema = {"fields": {}, "layout": layout, NODES: NODES in data}
        for name, tensor in fields.items():
            cat_dim = _cat_dim(data, name, tensor)
            shape: list[int | None] = [*tensor.shape]
            if cat_dim is not None:
                facts[f"rows:{name}"] = tensor.shape[cat_dim]
                shape[cat_dim] = None
            if increment := _increment(data, name, tensor):
                facts[f"inc:{name}"] = increment
            schema["fields"][name] = {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": shape,
                "cat_dim": cat_dim,
                "inc": increment != 0,
            }
        return Packed(encoded, facts, schema)

    def merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
        """See `Codec`: graphs must agree in everything that batches rely on."""
        fields, others = one["fields"], other["fields"]
        if lacking := sorted(set(fields) ^ set(others)):
            raise ValueError(f"field {lacking[0]!r} is in some graphs only")
        if one["layout"] != other["layout"]:
            raise ValueError(f"its bytes lie in the order {other['layout']}, not {one['layout']}")
        merged = {}
        for name, field in fields.items():
            for what in ("dtype", "shape", "cat_dim"):
                if field[what] != others[name][what]:
                    raise ValueError(
                        f"field {name!r} has {what} {others[name][what]}, "
                        f"in the graphs before {field[what]}"
                    )
            merged[name] = {**field, "inc": field["inc"] or others[name]["inc"]}
        return {"fields": merged, "layout": one["layout"], NODES: one[NODES] or other[NODES]}

    def decode(self, data: bytes) -> Data:
        """See `Codec`."""
        from torch_geometric.data import Data

        tensors = decode_tensors(data)
        nodes = tensors.pop(NODES, None)
        graph = Data(**tensors)
        if nodes is not None and not _NODE_FIELDS & set(tensors):
            graph.num_nodes = int(nodes)
        return graph

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """See `Codec`: graphs are batched in a way of their own."""
        return None

    def _fields(self, data: Data) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensor fields, in the order of the `Data`."""
        if not hasattr(data, "_store"):
            raise ValueError(f"{type(data).__name__} is not a torch_geometric.data.Data")
        for name, value in dict(data._store).items():
            if name == NODES:
                continue
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
                raise ValueError(f"field {name!r} is a {type(value).__name__}, not a dense tensor")
            yield name, value.detach().cpu()

    def _check(self, data: Data, fields: dict[str, torch.Tensor], nodes: int) -> None:
        """Refuse what PyG takes in silence and batches wrongly; int32 edges become int64."""
        if nodes == 0 and not self._allow_empty:
            raise ValueError("a graph without nodes (allow_empty=True, --allow-empty takes it)")
        edges = fields.get("edge_index")
        if edges is not None:
            if edges.dtype == torch.int32:
                edges = fields["edge_index"] = edges.long()
            if edges.dtype != torch.int64 or edges.dim() != 2 or edges.shape[0] != 2:
                raise ValueError(
                    f"edge_index is {edges.dtype} of shape {[*edges.shape]}, "
                    "not int64 of [2, edges]"
                )
            if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
                raise ValueError(
                    f"edge_index points at node {int(edges.max())} or {int(edges.min())} "
                    f"of a graph of {nodes} nodes"
                )
        for name, tensor in fields.items():
            floating = tensor.is_floating_point() or tensor.is_complex()
            if floating and not self._allow_nan and not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"field {name!r} holds NaN or infinity (allow_nan=True, --allow-nan takes it)"
                )


def _check_bytes(encoded: bytes, fields: Mapping[str, torch.Tensor], nodes: int) -> None:
    """Refuse bytes that are not as `pack` writes them: they are kept, and read as if they were."""
    tensors = decode_tensors(encoded)
    stored = tensors.pop(NODES, None)
    if stored is None or stored.dtype != torch.int64 or stored.numel() != 1:
        raise ValueError(f"{NODES} is missing or not one int64; pack the graph as a Data")
    if int(stored) != nodes:
        raise ValueError(f"{NODES} is {int(stored)}, its fields have {nodes} nodes")
    for name, tensor in tensors.items():
        if tensor.dtype != fields[name].dtype:
            raise ValueError(f"field {name!r} is {tensor.dtype}, not {fields[name].dtype}")


def _count_nodes(data: Data, fields: Mapping[str, torch.Tensor]) -> int:
    """The number of nodes, known and not guessed from the edges, as PyG would."""
    counts = {
        name: fields[name].shape[cat_dim]
        for name in _NODE_FIELDS
        if name in fields and (cat_dim := _cat_dim(data, name, fields[name])) is not None
    }
    stored = data._store.get(NODES)
    if stored is None and not counts:
        raise ValueError("the number of nodes is not known: set num_nodes, or have x")
    nodes = int(stored) if stored is not None else next(iter(counts.values()))
    for name, count in counts.items():
        if count != nodes:
            raise ValueError(f"the graph has {nodes} nodes, its field {name!r} {count}")
    if nodes < 0:
        raise ValueError(f"{NODES} is {nodes}")
    return nodes


def _count_edges(data: Data) -> int:
    return int(data.edge_index.shape[1]) if "edge_index" in data else 0


def _cat_dim(data: Data, name: str, tensor: torch.Tensor) -> int | None:
    """The dimension of concatenation, counted from the front; None where graphs are stacked."""
    cat_dim = data.__cat_dim__(name, tensor)
    if cat_dim is None or tensor.dim() == 0:
        return None
    if not isinstance(cat_dim, int):
        raise ValueError(f"field {name!r} is concatenated along {cat_dim}, not along one dimension")
    return cat_dim % tensor.dim()


def _increment(data: Data, name: str, tensor: torch.Tensor) -> int:
    """What the indices of the next graphs in a batch are increased by for this one."""
    increment = data.__inc__(name, tensor)
    if isinstance(increment, torch.Tensor) and increment.numel() != 1:
        raise ValueError(f"field {name!r} has an increment of {increment.numel()} numbers, not one")
    return int(increment)


def _read_layout(encoded: bytes) -> tuple[int, list[str]]:
    """Bytes in front of the data, and the fields in the order in which their bytes lie."""
    base = 8 + int.from_bytes(encoded[:8], "little")
    header = json.loads(encoded[8:base])
    header.pop("__metadata__", None)
    # A stable sort: fields without bytes keep the place that the header gives them.
    return base, sorted(header, key=lambda name: header[name]["data_offsets"])
