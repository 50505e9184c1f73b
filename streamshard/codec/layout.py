"""Graphs like the one before them, packed without asking PyG again.

Nearly all graphs of a dataset have the same fields, and `Data` has one rule for all fields of one
name: what PyG says of the first graph holds for the others. So the first is taken apart with care,
and of those like it only sizes and values are looked at. What is not just like it, or may be wrong,
is left to the careful way, which also has the words for what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.base import Packed, Schema
from streamshard.codec.narrow import INTEGERS, narrowed
from streamshard.codec.pyg import NODE_FIELDS, NODES, Field, Graph
from streamshard.codec.tensor import FORMAT_NAMES, entry, framed, header_text

Array = NDArray[Any]

_MANY = 1 << 40  # nodes: a number that no rule comes to but "the number of nodes"


class Layout:
    """How graphs of PyG's `Data` are packed that have the same fields as one before."""

    def __init__(self, kind: type[Any], graph: Graph, rules: list[_Rule], schema: Schema) -> None:
        """Derive it from one graph.

        Args:
            kind: The class.
            graph: Taken apart.
            rules: What holds for each of its fields.
            schema: What the codec told of it.
        """
        self._class, self._rules, self._schema = kind, rules, schema
        self._names = tuple(field.name for field in graph.fields)
        self._is_set = graph.nodes[0].is_set
        self._edges = self._names.index("edge_index") if "edge_index" in self._names else None
        self._counted = next((number for number, rule in enumerate(rules) if rule.of_nodes), None)
        # In the order of the bytes; the number of nodes is no field.
        self._order = [
            None if name == NODES else self._names.index(name) for name in schema["layout"]
        ]
        ordered = [rules[place] for place in self._order if place is not None]
        self._header = _header_with_holes(schema["layout"], {rule.name: rule for rule in rules})
        self._told = (*(name for rule in ordered for name in rule.tells), "nodes", "edges", "base")

    @classmethod
    def of(cls, data: Any, graph: Graph, schema: Schema, *, allow_nan: bool) -> Layout | None:
        """That of a graph; None where a graph like it could be batched by another rule.

        Args:
            data: The graph.
            graph: The same, taken apart.
            schema: What the codec told of it.
            allow_nan: Whether values may be NaN and infinite.
        """
        raised = _raised(data, graph.fields)
        arrays = _arrays(field.tensor for field in graph.fields)
        if raised is None or arrays is None or not graph.nodes[0].nodes:
            return None
        rules = [
            _rule(field, array, schema["fields"][field.name], is_raised, allow_nan=allow_nan)
            for field, array, is_raised in zip(graph.fields, arrays, raised, strict=True)
        ]
        return cls(type(data), graph, rules, schema)

    def pack(self, data: Any) -> Packed | None:
        """What the codec's `pack` gives; None for what is not like the first, or faulty."""
        if type(data) is not self._class:
            return None
        values = data.to_dict()
        nodes = values.pop(NODES, None)
        if tuple(values) != self._names or (nodes is not None) != self._is_set:
            return None
        arrays = _arrays(values.values())
        if arrays is None:
            return None
        rows = [rule.rows(array) for rule, array in zip(self._rules, arrays, strict=True)]
        if nodes is None and self._counted is not None:
            nodes = rows[self._counted]
        if type(nodes) is not int or nodes < 1:
            return None
        for rule, array, length in zip(self._rules, arrays, rows, strict=True):
            if not rule.allows(array, length, nodes):
                return None
        return self._packed(arrays, rows, nodes)

    def _packed(self, arrays: list[Array], rows: list[int], nodes: int) -> Packed:
        holes: list[Any] = []  # what the header has of this graph alone
        told: list[int] = []
        pieces: list[bytes] = []
        end = 0
        for place in self._order:
            if place is None:
                piece = nodes.to_bytes(8, "little")
            else:
                piece = self._rules[place].piece(arrays[place], rows[place], nodes, holes, told)
            holes += (end, end + len(piece))
            end += len(piece)
            pieces.append(piece)
        header = framed(self._header % tuple(holes))
        told += (nodes, 0 if self._edges is None else rows[self._edges], len(header))
        facts = dict(zip(self._told, told, strict=True))
        return Packed(b"".join([header, *pieces]), facts, self._schema)


_UNLIKE = -1  # rows of a field that is not like the first


@dataclass(frozen=True, slots=True)
class _Rule:
    """What holds for one field of all graphs that are alike.

    Attributes:
        name: Of the field.
        dtype: Of its values.
        kind: The same as safetensors calls it.
        dims: How many dimensions it has.
        cat_dim: That in which graphs differ; `dims` where there is none.
        before: The lengths of the dimensions in front of it.
        behind: Of those behind it.
        of_nodes: Whether its length is the number of nodes.
        raised: Whether a batch raises the values by the number of nodes.
        of_numbers: Whether the values must be numbers of nodes.
        finite: Whether they must be finite.
        narrow: Whether they are kept in as few bytes as possible.
    """

    name: str
    dtype: np.dtype[Any]
    kind: str
    dims: int
    cat_dim: int
    before: tuple[int, ...]
    behind: tuple[int, ...]
    of_nodes: bool
    raised: bool
    of_numbers: bool
    finite: bool
    narrow: bool

    @property
    def varies(self) -> bool:
        """Whether graphs differ in a dimension."""
        return self.cat_dim < self.dims

    @property
    def tells(self) -> list[str]:
        """The facts that `piece` appends."""
        told = {"width": self.narrow, "rows": self.varies, "inc": self.raised}
        return [f"{fact}:{self.name}" for fact, is_told in told.items() if is_told]

    @property
    def entry(self) -> dict[str, Any]:
        """What the header has of it, with a hole for each number that `piece` appends."""
        shape = [*self.before, *(["%d"] if self.varies else []), *self.behind]
        return entry("%s" if self.narrow else self.kind, shape, "%d", "%d")

    def rows(self, array: Array) -> int:
        """The length in the dimension that varies; below 0 where the field is another."""
        shape, cat_dim = array.shape, self.cat_dim
        if (
            array.dtype != self.dtype
            or len(shape) != self.dims
            or shape[:cat_dim] != self.before
            or shape[cat_dim + 1 :] != self.behind
        ):
            return _UNLIKE
        return shape[cat_dim] if cat_dim < self.dims else 0

    def allows(self, array: Array, rows: int, nodes: int) -> bool:
        """Whether these values are sound in a graph of so many nodes."""
        if rows < 0 or (self.of_nodes and rows != nodes):
            return False
        if self.finite and np.count_nonzero(np.isfinite(array)) != array.size:
            return False
        if not self.raised or not array.size:
            return True
        # Without their sign, numbers below 0 are above all others.
        least_beyond = nodes if self.of_numbers else 1 << 63
        return int(np.maximum.reduce(array.astype(np.uint64), axis=None)) < least_beyond

    def piece(
        self, array: Array, rows: int, nodes: int, holes: list[Any], told: list[int]
    ) -> bytes:
        """The bytes; what is this graph's own is appended, for the header and for the index."""
        if self.narrow:
            array, width = narrowed(array)
            holes.append(f"{array.dtype.kind.upper()}{array.itemsize * 8}")
            told.append(width)
        if self.cat_dim < self.dims:
            holes.append(rows)
            told.append(rows)
        if self.raised:
            told.append(nodes)
        return array.tobytes()


def _rule(field: Field, array: Array, spec: Schema, raised: bool, *, allow_nan: bool) -> _Rule:
    dims = array.ndim
    cat_dim = dims if field.cat_dim is None else field.cat_dim
    return _Rule(
        name=field.name,
        dtype=array.dtype,
        kind=FORMAT_NAMES[field.tensor.dtype],
        dims=dims,
        cat_dim=cat_dim,
        before=array.shape[:cat_dim],
        behind=array.shape[cat_dim + 1 :],
        of_nodes=field.name in NODE_FIELDS and cat_dim < dims,
        raised=raised,
        of_numbers=field.name in ("edge_index", "face"),
        finite=array.dtype.kind in "fc" and not allow_nan,
        narrow=spec.get("narrow", False),
    )


def _header_with_holes(layout: list[str], rules: dict[str, _Rule]) -> str:
    """The header of graphs that are alike, to be filled by `%`."""
    entries = {
        name.replace("%", "%%"): entry("I64", [], "%d", "%d")
        if name == NODES
        else rules[name].entry
        for name in layout
    }
    return header_text(entries).replace('"%d"', "%d")


def _raised(data: Any, fields: list[Field]) -> list[bool] | None:
    """Which fields' values a batch raises by the number of nodes.

    None where the graph is not just a `Data`, whose rules are known to look at a field's name and
    kind only, or where PyG raises some field by a number that its values decide.
    """
    from torch_geometric.data import Data

    if type(data) is not Data or any(field.was for field in fields):
        return None
    stranger = Data(num_nodes=_MANY)
    raised = []
    for field in fields:
        zeros = field.tensor.new_zeros([1] * field.tensor.dim())
        number = stranger.__inc__(field.name, zeros, stranger.stores[0])
        if number not in (0, _MANY) or (number and field.tensor.dtype not in INTEGERS):
            return None
        raised.append(bool(number))
    return raised


def _arrays(values: Iterable[Any]) -> list[Array] | None:
    """Tensors as numpy sees them; None where one is no plain tensor on the CPU that it can see."""
    arrays = []
    for value in values:
        if type(value) is not torch.Tensor:
            return None
        try:
            arrays.append(value.numpy())
        except (RuntimeError, TypeError):  # with a gradient, of a dtype of its own, …
            return None
    return arrays
