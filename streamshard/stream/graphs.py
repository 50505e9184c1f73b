"""Graphs of a batch: from byte ranges into the block, and out of it as a PyG `Batch`.

What `torch_geometric.data.Batch.from_data_list` makes, tensor for tensor, without a `Data` in
between: each field's bytes are joined over all graphs, then the indices are shifted in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.graph import NODES
from streamshard.stream.block import Block, BlockBuilder, Column

if TYPE_CHECKING:
    from torch_geometric.data import Batch

Ints = NDArray[np.int64]
_ITEM = {NODES: 8}  # bytes of the number of nodes, which lies among the fields


class GraphRows(NamedTuple):
    """The graphs of a batch before they are put together.

    Attributes:
        data: Each graph's part, whole.
        facts: Columns of the index for these graphs, (graphs,) int64, by fact.
    """

    data: Sequence[memoryview]
    facts: Mapping[str, Ints]


def add_graphs(
    builder: BlockBuilder, name: str, schema: Mapping[str, Any], rows: GraphRows
) -> None:
    """Lay the batch of these graphs into a block.

    Args:
        builder: Of the block.
        name: Of the part.
        schema: Of the graphs, as their codec recorded it.
        rows: The graphs, in the order of the batch.
    """
    count, nodes = len(rows.data), rows.facts["nodes"]
    starts = dict(_field_starts(schema, rows.facts))
    entries = {
        field: _add_field(builder, f"{name}/{field}", spec, starts[field], field, rows)
        for field, spec in schema["fields"].items()
    }
    tables: dict[str, tuple[int, int]] = {}
    stacked = builder.array(f"{name}/slice", np.arange(count + 1, dtype=np.int64))
    unshifted = builder.array(f"{name}/inc", np.zeros(count, np.int64))
    for field, spec in schema["fields"].items():
        slices, increments = stacked, unshifted
        if spec["cat_dim"] is not None:
            ends = _ends(rows.facts[f"rows:{field}"])
            slices = builder.array(f"{name}/slice:{field}", ends)
        if spec["inc"]:
            shifts = _shifts(field, rows.facts)
            increments = builder.array(f"{name}/inc:{field}", shifts)
        tables[field] = slices, increments
    batch = np.repeat(np.arange(count, dtype=np.int64), nodes)
    extra = {
        "count": count,
        "fields": list(entries),
        "tables": list(tables.values()),
        "num_nodes": nodes.tolist() if schema[NODES] else None,
    }
    numbers = [
        *entries.values(),
        builder.array(f"{name}/batch", batch),
        builder.array(f"{name}/ptr", _ends(nodes)),
    ]
    builder.column(name, "graph", numbers, extra)


def _add_field(
    builder: BlockBuilder,
    name: str,
    spec: Mapping[str, Any],
    starts: Ints,
    field: str,
    rows: GraphRows,
) -> int:
    """Add one field of all graphs as one entry."""
    dtype: torch.dtype = getattr(torch, spec["dtype"])
    shape, cat_dim, count = list(spec["shape"]), spec["cat_dim"], len(rows.data)
    if cat_dim is None:
        length = math.prod(shape) * dtype.itemsize
        buffers = _slices(rows.data, starts, np.full(count, length))
        return builder.piece(name, dtype, (count, *shape), buffers)
    sizes = rows.facts[f"rows:{field}"]
    outer, inner = math.prod(shape[:cat_dim]), math.prod(shape[cat_dim + 1 :])
    lengths = sizes * inner * dtype.itemsize
    shape[cat_dim] = int(sizes.sum())
    # One graph's field is outer x rows x inner; the batch's has the rows of all graphs in the
    # middle, so each of the outer runs is gathered over the graphs.
    buffers = [
        part for run in range(outer) for part in _slices(rows.data, starts + run * lengths, lengths)
    ]
    add = None
    if spec["inc"]:
        shifts = np.repeat(_shifts(field, rows.facts), sizes)
        add = shifts.reshape(-1, *[1] * (len(shape) - cat_dim - 1))
    return builder.piece(name, dtype, shape, buffers, add)


def _field_starts(schema: Mapping[str, Any], facts: Mapping[str, Ints]) -> list[tuple[str, Ints]]:
    """Where each field begins in the part of each graph; it follows from the sizes alone."""
    at, starts = facts["base"].copy(), []
    for field in schema["layout"]:
        starts.append((field, at.copy()))
        if field == NODES:
            at += _ITEM[NODES]
            continue
        spec = schema["fields"][field]
        width = math.prod(size for size in spec["shape"] if size is not None)
        width *= getattr(torch, spec["dtype"]).itemsize
        at += width if spec["cat_dim"] is None else width * facts[f"rows:{field}"]
    return starts


def _slices(data: Sequence[memoryview], starts: Ints, lengths: Ints) -> list[memoryview]:
    ends = (starts + lengths).tolist()
    return [part[a:b] for part, a, b in zip(data, starts.tolist(), ends, strict=True)]


def _ends(sizes: Ints) -> Ints:
    """0 and the running sums: where each graph's part of a concatenation begins and ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _shifts(field: str, facts: Mapping[str, Ints]) -> Ints:
    """What is added to the indices of each graph: the increments of all graphs before it."""
    return _ends(np.maximum(facts[f"inc:{field}"], 0))[:-1]  # the index keeps no zero


def graph_batch(block: Block, column: Column, memory: torch.Tensor | None) -> Batch:
    """The PyG `Batch` that lies in a block.

    Args:
        block: The block.
        column: The part.
        memory: The block's memory on another device, or None.
    """
    from torch_geometric.data import Batch, Data

    extra = column.extra
    batch: Batch = Batch(_base_cls=Data)
    names = [*extra["fields"], "batch", "ptr"]
    for name, number in zip(names, column.entries, strict=True):
        batch[name] = block.view(number, memory)
    if extra["num_nodes"] is not None:
        batch._store._num_nodes = extra["num_nodes"]
        batch.num_nodes = sum(extra["num_nodes"])
    # The tables by which the batch is taken apart again; PyG keeps them on the CPU.
    slices, increments = {}, {}
    for name, (cut, shift) in zip(extra["fields"], extra["tables"], strict=True):
        slices[name], increments[name] = block.view(cut), block.view(shift)
    batch._num_graphs = extra["count"]
    batch._slice_dict, batch._inc_dict = slices, increments
    return batch
