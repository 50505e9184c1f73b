"""Graphs of a batch: from byte ranges into the block, all at once.

What `torch_geometric.data.Batch.from_data_list` makes, tensor for tensor, without a `Data` in
between: each field's bytes are joined over all graphs, then the indices are shifted in one pass.
`stream/graph_batch.py` sees the block as a PyG `Batch`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.narrow import SIGNED
from streamshard.codec.pyg import NODE_FIELDS, NODES, joined, parted
from streamshard.plan.order import Ints, ends
from streamshard.stream.builder import BlockBuilder
from streamshard.stream.choice import Graphs
from streamshard.stream.graph_batch import Shape, Table

_ONE = -1  # the row of ones in a matrix of facts


class GraphRows(NamedTuple):
    """The graphs of a batch before they are put together.

    Attributes:
        data: For each graph, the memory that its part lies in.
        begins: (graphs,) where the part begins there, in bytes.
        facts: (facts, graphs) int64, what the index keeps, in the order of `Layouter.facts`.
    """

    data: Sequence[memoryview]
    begins: Ints
    facts: Ints


class _Field(NamedTuple):
    """A field, as its bytes are found and joined.

    Attributes:
        name: Store in front.
        dtype: In the batch.
        shape: Of one graph's, 0 at `cat_dim`.
        cat_dim: None where graphs are stacked.
        rows: The fact that holds its length; the row of ones where it is stacked.
        row_bytes: Bytes of a whole graph's field for each of those rows.
        increments: The facts that hold its increments.
        width: The fact that holds the bytes of an integer, where it was narrowed.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    cat_dim: int | None
    rows: int
    row_bytes: int
    increments: tuple[int, ...]
    width: int | None


class Layouter:
    """Lays batches of graphs of one schema into blocks.

    Attributes:
        facts: What the index is asked for, by name.
    """

    def __init__(self, schema: Mapping[str, Any], choice: Graphs) -> None:
        """Settle what does not depend on the batch.

        Raises:
            UsageError: A field is asked for that there is not.
        """
        self.facts = ["base"]
        self._choice = choice
        self._nodes = {
            store: self._fact(f"nodes:{store}" if store else "nodes") for store in schema[NODES]
        }
        specs = schema["fields"]
        fields = {name: self._field(name, specs[name]) for name in specs}
        for store in schema[NODES]:
            name = joined(store, NODES)
            fields[name] = _Field(name, torch.int64, (), None, _ONE, 8, (), None)
        self._in_order = [fields[name] for name in schema["layout"]]
        self._chosen = [fields[name] for name in choice.chosen(schema)]
        self._edge_types = tuple(schema["edge_types"])
        self._rows = np.array([field.rows for field in self._in_order], np.int64)
        self._row_bytes = np.array([[field.row_bytes] for field in self._in_order], np.int64)
        # The facts that batches are taken apart by, and where each lies among them.
        kept = {fact for field in self._chosen for fact in (field.rows, *field.increments)}
        self._kept = np.array(sorted({*kept, *self._nodes.values()} - {_ONE}), np.int64)
        places = {fact: place for place, fact in enumerate(self._kept.tolist())} | {_ONE: _ONE}
        self._tables = tuple(
            Table(
                field.name,
                places[field.rows],
                tuple(places[fact] for fact in field.increments),
                len(field.shape),
            )
            for field in self._chosen
        )
        telling = {
            parted(field.name)[0] for field in self._chosen if parted(field.name)[1] in NODE_FIELDS
        }
        # A batch says how many nodes each graph has where its graphs did, or nothing else tells.
        self._counted = tuple(
            (store, places[fact] if schema[NODES][store] or store not in telling else -1)
            for store, fact in self._nodes.items()
        )
        self._widths = [
            (field.width, field.dtype.itemsize + SIGNED)
            for field in self._in_order
            if field.width is not None
        ]
        self._cat_dims = tuple(
            (field.name, field.cat_dim) for field in self._chosen if not _is_usual(field)
        )
        self._increments = [fact for field in self._chosen for fact in field.increments]

    def _fact(self, name: str) -> int:
        self.facts.append(name)
        return len(self.facts) - 1

    def _field(self, name: str, spec: Mapping[str, Any]) -> _Field:
        dtype: torch.dtype = getattr(torch, spec["dtype"])
        shape = tuple(size or 0 for size in spec["shape"])
        width = math.prod(size for size in spec["shape"] if size is not None)
        stacked = spec["cat_dim"] is None
        names = [f"inc:{name}"]
        if spec["inc"] > 1:
            names = [f"inc:{name}:{row}" for row in range(spec["inc"])]
        return _Field(
            name,
            dtype,
            shape,
            spec["cat_dim"],
            _ONE if stacked else self._fact(f"rows:{name}"),
            width * dtype.itemsize,
            tuple(map(self._fact, names)) if spec["inc"] else (),
            self._fact(f"width:{name}") if spec.get("narrow") else None,
        )

    def add(self, builder: BlockBuilder, name: str, rows: GraphRows) -> None:
        """Lay the batch of these graphs into a block, as a part of this name."""
        count = len(rows.data)
        facts = np.concatenate([rows.facts, np.ones((1, count), np.int64)])
        # The index keeps no zero: what is missing there is one.
        facts[self._increments] = np.maximum(facts[self._increments], 0)
        for fact, whole in self._widths:  # none for a graph that was not narrowed
            facts[fact] = np.where(facts[fact] > 0, facts[fact], whole)
        starts = self._starts(rows.begins, facts)
        entries: list[int] = []
        names: list[str] = []

        def keep(field: str, number: int) -> None:
            names.append(field)
            entries.append(number)

        for field in self._chosen:
            keep(field.name, _add_field(builder, name, field, facts, starts[field.name], rows.data))
            if self._choice.is_followed(field.name):
                self._follow(builder, name, field.name, facts[field.rows], keep)
        for store, fact in self._nodes.items():
            of = joined(store, "")
            batch = np.repeat(np.arange(count, dtype=np.int64), facts[fact])
            keep(f"{of}batch", builder.array(f"{name}/{of}batch", batch))
            keep(f"{of}ptr", builder.array(f"{name}/{of}ptr", ends(facts[fact])))
        # No entry of the column's: it stays on the host, wherever the batch goes.
        table = builder.array(f"{name}/table", facts[self._kept])
        shape = Shape(
            count,
            tuple(names),
            table,
            self._tables,
            self._counted,
            self._edge_types,
            self._cat_dims,
        )
        builder.column(name, "graph", entries, shape)

    def _follow(self, builder: BlockBuilder, name: str, field: str, sizes: Ints, keep: Any) -> None:
        batch = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
        keep(f"{field}_batch", builder.array(f"{name}/{field}_batch", batch))
        keep(f"{field}_ptr", builder.array(f"{name}/{field}_ptr", ends(sizes)))

    def _starts(self, begins: Ints, facts: Ints) -> dict[str, Ints]:
        """Where each field of each graph begins in its memory; it follows from the sizes alone."""
        # (fields in the order of their bytes, graphs)
        lengths = facts[self._rows] * self._row_bytes
        for place, field in enumerate(self._in_order):
            if field.width is not None:
                lengths[place] = (
                    lengths[place] // field.dtype.itemsize * (facts[field.width] & (SIGNED - 1))
                )
        starts = begins + facts[0] + np.cumsum(lengths, axis=0) - lengths
        return {field.name: starts[place] for place, field in enumerate(self._in_order)}


def _is_usual(field: _Field) -> bool:
    """Whether PyG itself concatenates a field of that name so."""
    store, name = parted(field.name)
    is_index = ("index" in name and (not store or "/" in store)) or (name == "face" and not store)
    usual = len(field.shape) - 1 if is_index else 0
    return field.cat_dim == usual or not field.shape


def _add_field(
    builder: BlockBuilder,
    name: str,
    field: _Field,
    facts: Ints,
    starts: Ints,
    data: Sequence[memoryview],
) -> int:
    """Add one field of all graphs as one entry."""
    sizes, cat_dim = facts[field.rows], field.cat_dim
    shape, outer = list(field.shape), 1
    if cat_dim is None:
        shape.insert(0, len(data))
    else:
        shape[cat_dim] = int(sizes.sum())
        outer = math.prod(field.shape[:cat_dim])
    # One graph's field is outer x rows x inner; the batch's has the rows of all graphs in the
    # middle, so each of the outer runs is gathered over the graphs.
    lengths = sizes * (field.row_bytes // max(outer, 1))
    if field.width is not None:
        lengths = lengths // field.dtype.itemsize * (facts[field.width] & (SIGNED - 1))
    buffers: list[Any] = []
    for run in range(outer):
        pieces = _slices(data, starts + run * lengths, lengths)
        if field.width is None:
            buffers += pieces
        else:
            buffers += _widened(pieces, facts[field.width].tolist(), field.dtype)
    return builder.piece(
        f"{name}/{field.name}", field.dtype, shape, buffers, _shifts(field, facts, sizes, shape)
    )


def _shifts(field: _Field, facts: Ints, sizes: Ints, shape: Sequence[int]) -> Ints | None:
    """What is added to a field's values, broadcast to its shape: the increments before each."""
    if not field.increments:
        return None
    cat_dim = field.cat_dim or 0
    before = np.stack([ends(facts[fact])[:-1] for fact in field.increments])
    along = np.repeat(before, sizes if field.cat_dim is not None else 1, axis=1)
    after = [1] * (len(shape) - cat_dim - 1)
    if len(field.increments) == 1:
        return along.reshape(-1, *after)
    return along.reshape(len(before), *[1] * (cat_dim - 1), -1, *after)


def _slices(data: Sequence[memoryview], starts: Ints, lengths: Ints) -> list[memoryview]:
    stops = (starts + lengths).tolist()
    return [part[a:b] for part, a, b in zip(data, starts.tolist(), stops, strict=True)]


def _widened(
    pieces: Sequence[memoryview], widths: Sequence[int], dtype: torch.dtype
) -> Iterator[NDArray[Any]]:
    """Integers as they are in a batch, from as few bytes as each graph's values need."""
    wide = np.dtype(str(dtype).removeprefix("torch."))
    at = 0
    for width, run in groupby(widths):
        stop = at + sum(1 for _ in run)
        kind = np.dtype(f"<{'i' if width & SIGNED else 'u'}{width & (SIGNED - 1)}")
        yield np.frombuffer(b"".join(pieces[at:stop]), kind).astype(wide)
        at = stop
