"""A graph: one safetensors part, typed raw arrays, to a PyG `Data` or `HeteroData` and back.

What PyG says of each field (`codec/pyg.py`) is the same for every graph and goes into the schema,
but for sizes and increments, which are numbers for each graph and go into the index: from them
follows where every field lies, so that a batch is assembled without parsing anything per graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from streamshard.codec.base import Facts, Form, Packed, Schema
from streamshard.codec.layout import Layout
from streamshard.codec.narrow import INTEGERS, narrowed, width_of
from streamshard.codec.pyg import (
    NODES,
    Field,
    Graph,
    NodeCount,
    joined,
    parted,
    put_together,
    take_apart,
)
from streamshard.codec.tensor import decode_tensors, encode_ordered

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData


class GraphCodec:
    """A graph with tensor fields.

    Facts in the index: `nodes` and `edges`, of all types; `nodes:TYPE` in a `HeteroData`; `base`
    (bytes in front of the first field); for each field that is concatenated `rows:FIELD` (its
    length along the dimension); `inc:FIELD`, or `inc:FIELD:ROW` where each row has its own, unless
    it is zero; and where integers were narrowed `width:FIELD`, bytes, 16 more where signed.

    The schema has `fields`, in the order of PyG's stores: dtype, shape with null for the dimension
    that varies, `cat_dim` (null where graphs are stacked), `inc`, how many increments there are,
    `narrow` where integers are, and `was`, the dtype that edges had where they were widened;
    `layout`, the fields in the order of the bytes; `num_nodes`, by type whether the graph had it
    set; and `edge_types`.
    """

    name = "graph"
    imports = ("torch_geometric.data",)  # modules that packing takes, which cost memory

    def __init__(
        self,
        *,
        allow_empty: bool = False,
        allow_nan: bool = False,
        narrow: bool = False,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the codec.

        Args:
            allow_empty: Take graphs without nodes.
            allow_nan: Take NaN and infinity.
            narrow: Keep integers in as few bytes as each graph's values allow.
            schema: What the bytes that are given were packed with: fields that were narrowed then
                are known by it.
        """
        self._allow_empty, self._allow_nan, self._narrow = allow_empty, allow_nan, narrow
        self._schema = schema or {}
        self._layout: Layout | None = None  # of the graph before

    def pack(self, value: Any) -> Packed:
        """See `Codec`: takes a `Data`, a `HeteroData`, or the bytes of one."""
        packed = self._layout.pack(value) if self._layout else None
        return packed or self._pack(value)

    def _pack(self, value: Any) -> Packed:
        """The same for any graph: it is taken apart, checked and put into bytes."""
        is_packed = isinstance(value, bytes)
        graph = take_apart(self.decode(value, self._schema) if is_packed else value)
        self._check(graph)
        facts: Facts = {
            "nodes": sum(count.nodes for count in graph.nodes),
            "edges": sum(_edges(field) for field in graph.fields),
        }
        facts |= {f"nodes:{count.store}": count.nodes for count in graph.nodes if count.store}
        tensors = {joined(count.store, NODES): torch.tensor(count.nodes) for count in graph.nodes}
        fields = {}
        for field in graph.fields:
            fields[field.name] = _spec(field)
            facts |= _sizes(field)
            tensors[field.name] = field.tensor
            if self._narrow and not is_packed and field.tensor.dtype in INTEGERS:
                array, width = narrowed(field.tensor.numpy())
                tensors[field.name] = torch.from_numpy(array)
                facts[f"width:{field.name}"] = width
                fields[field.name]["narrow"] = True
        order = _byte_order(graph, tensors)
        encoded = encode_ordered({name: tensors[name] for name in order})
        if is_packed:
            for name, width in self._check_bytes(value, graph):
                facts[f"width:{name}"] = width
                fields[name]["narrow"] = True
            encoded = value
        facts["base"], layout = read_layout(encoded)
        schema: Schema = {
            "fields": fields,
            "layout": layout,
            NODES: {count.store: count.is_set for count in graph.nodes},
            "edge_types": graph.edge_types,
        }
        if not is_packed:
            self._layout = Layout.of(value, graph, schema, allow_nan=self._allow_nan)
        return Packed(encoded, facts, schema)

    def merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
        """See `Codec`: graphs must agree in everything that batches rely on."""
        for what, name in ((NODES, "node types"), ("edge_types", "edge types")):
            if [*one[what]] != [*other[what]]:
                raise ValueError(f"{name} {[*other[what]]}, in the graphs before {[*one[what]]}")
        fields, others = one["fields"], other["fields"]
        if lacking := sorted(set(fields) ^ set(others)):
            raise ValueError(f"field {lacking[0]!r} is in some graphs only")
        if one["layout"] != other["layout"]:
            raise ValueError(f"its bytes lie in the order {other['layout']}, not {one['layout']}")
        return {
            **one,
            "fields": {name: _merged(name, fields[name], others[name]) for name in fields},
            NODES: {store: is_set or other[NODES][store] for store, is_set in one[NODES].items()},
        }

    def decode(self, data: bytes, schema: Mapping[str, Any] | None = None) -> Data | HeteroData:
        """See `Codec`."""
        tensors = decode_tensors(data)
        for name, spec in (schema or {}).get("fields", {}).items():
            if name in tensors:
                tensors[name] = tensors[name].to(getattr(torch, spec["dtype"]))
        order = [name for name in (schema or {}).get("fields", {}) if name in tensors]
        return put_together({name: tensors[name] for name in dict.fromkeys([*order, *tensors])})

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """See `Codec`: graphs are batched in a way of their own."""
        return None

    def _check_bytes(self, encoded: bytes, graph: Graph) -> Iterator[tuple[str, int]]:
        """Refuse bytes that are not as `pack` writes them: they are kept, and read as if they were.

        Yields:
            Each field that may be narrowed, and the width that it has.
        """
        tensors = decode_tensors(encoded)
        for count in graph.nodes:
            _check_count(tensors.pop(joined(count.store, NODES), None), count)
        fields = {field.name: field.tensor for field in graph.fields}
        for name, tensor in tensors.items():
            if self._schema.get("fields", {}).get(name, {}).get("narrow"):
                yield name, width_of(tensor.dtype)
            elif tensor.dtype != fields[name].dtype:
                raise ValueError(f"field {name!r} is {tensor.dtype}, not {fields[name].dtype}")

    def _check(self, graph: Graph) -> None:
        """Refuse what PyG takes in silence and batches wrongly."""
        nodes = {count.store: count.nodes for count in graph.nodes}
        if not sum(nodes.values()) and not self._allow_empty:
            raise ValueError("a graph without nodes (allow_empty=True, --allow-empty takes it)")
        for field in graph.fields:
            store, name = parted(field.name)
            if name == "edge_index":
                _check_edges(field, *_ends(store, nodes))
            elif field.increments:
                _check_indices(field, nodes.get(store, 0) if name == "face" else None)
            floating = field.tensor.is_floating_point() or field.tensor.is_complex()
            if floating and not self._allow_nan and not bool(field.tensor.isfinite().all()):
                raise ValueError(
                    f"field {field.name!r} holds NaN or infinity "
                    "(allow_nan=True, --allow-nan takes it)"
                )


def _ends(store: str, nodes: Mapping[str, int]) -> tuple[int, int]:
    """How many nodes the two rows of an edge_index may point at."""
    words = store.split("/")
    return nodes[words[0]], nodes[words[-1]]


def _check_edges(field: Field, sources: int, destinations: int) -> None:
    for row, nodes in zip(field.tensor, (sources, destinations), strict=True):
        if row.numel() and not 0 <= int(row.min()) <= int(row.max()) < nodes:
            odd = int(row.min()) if int(row.min()) < 0 else int(row.max())
            raise ValueError(f"{field.name} points at node {odd} of a graph of {nodes} nodes")


def _check_indices(field: Field, nodes: int | None) -> None:
    """Refuse indices below 0, and where they are of nodes, past the last."""
    if not field.tensor.numel():
        return
    low, high = int(field.tensor.min()), int(field.tensor.max())
    if low < 0 or (nodes is not None and high >= nodes):
        of = "" if nodes is None else f" of a graph of {nodes} nodes"
        raise ValueError(f"{field.name} points at {low if low < 0 else high}{of}")


def _edges(field: Field) -> int:
    return field.tensor.shape[1] if parted(field.name)[1] == "edge_index" else 0


def _spec(field: Field) -> dict[str, Any]:
    """What the schema keeps of a field."""
    shape: list[int | None] = [*field.tensor.shape]
    if field.cat_dim is not None:
        shape[field.cat_dim] = None
    return {
        "dtype": str(field.tensor.dtype).removeprefix("torch."),
        "shape": shape,
        "cat_dim": field.cat_dim,
        "inc": len(field.increments),
        **({"was": field.was} if field.was else {}),
    }


def _sizes(field: Field) -> Iterator[tuple[str, int]]:
    """What the index keeps of a field."""
    if field.cat_dim is not None:
        yield f"rows:{field.name}", field.tensor.shape[field.cat_dim]
    if len(field.increments) == 1:
        yield f"inc:{field.name}", field.increments[0]
    elif any(field.increments):
        for row, number in enumerate(field.increments):
            yield f"inc:{field.name}:{row}", number


def _merged(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    for what in ("dtype", "shape", "cat_dim"):
        if one[what] != other[what]:
            raise ValueError(
                f"field {name!r} has {what} {other[what]}, in the graphs before {one[what]}"
            )
    if one["inc"] and other["inc"] and one["inc"] != other["inc"]:
        raise ValueError(
            f"field {name!r} has {other['inc']} increments, in the graphs before {one['inc']}"
        )
    # What is said of a field where some graph needs it: `narrow` and `was`.
    return {**other, **one, "inc": max(one["inc"], other["inc"])}


def _byte_order(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Fields by the width of their dtype, the widest first so that all are aligned, then by name.

    By the dtype that a batch has, not by that of the bytes: the same for every graph, also where
    integers are narrowed.
    """
    widths = {field.name: field.tensor.dtype.itemsize for field in graph.fields}
    return sorted(tensors, key=lambda name: (-widths.get(name, 8), name))


def _check_count(stored: torch.Tensor | None, count: NodeCount) -> None:
    name = joined(count.store, NODES)
    if stored is None or stored.dtype != torch.int64 or stored.numel() != 1:
        raise ValueError(f"{name} is missing or not one int64; pack the graph as a Data")
    if int(stored) != count.nodes:
        raise ValueError(f"{name} is {int(stored)}, its fields have {count.nodes} nodes")


def read_layout(encoded: bytes) -> tuple[int, list[str]]:
    """Bytes in front of the data, and the fields in the order in which their bytes lie."""
    base = 8 + int.from_bytes(encoded[:8], "little")
    header = json.loads(encoded[8:base])
    header.pop("__metadata__", None)
    # A stable sort: fields without bytes keep the place that the header gives them.
    return base, sorted(header, key=lambda name: header[name]["data_offsets"])
