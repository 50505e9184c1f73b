"""A block seen as a PyG `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from streamshard.codec.pyg import parted
from streamshard.stream.block import Block, Column

if TYPE_CHECKING:
    from torch_geometric.data import Batch


class Table(NamedTuple):
    """By what a field of a batch is taken apart again.

    Attributes:
        field: Its name.
        rows: The row of the block's table that holds its length in each graph; -1 where it is 1.
        increments: The rows that hold its increments.
        dims: Dimensions of a graph's tensor.
    """

    field: str
    rows: int
    increments: tuple[int, ...]
    dims: int


class Shape(NamedTuple):
    """What a batch of graphs is made of; goes with every block.

    Attributes:
        graphs: How many.
        entries: Names of the block's tensors, store in front.
        table: The block's entry that holds lengths and increments, (rows, graphs) int64.
        tables: By what of it the fields are taken apart.
        nodes: Node types ("" in a `Data`), and the row of the table that holds how many there are;
            -1 where graphs had no `num_nodes` set.
        edge_types: Of a `HeteroData`.
        cat_dims: Fields that are not concatenated as PyG would, and how they are.
    """

    graphs: int
    entries: tuple[str, ...]
    table: int
    tables: tuple[Table, ...]
    nodes: tuple[tuple[str, int], ...]
    edge_types: tuple[str, ...]
    cat_dims: tuple[tuple[str, int | None], ...]


class Lazy(Mapping[Any, Any]):
    """A dict that is made when it is first looked into.

    The tables by which a batch is taken apart take longer to make than everything else, and
    training never asks for them.
    """

    def __init__(self, make: Callable[[], dict[Any, Any]]) -> None:
        self._make: Callable[[], dict[Any, Any]] | None = make
        self._made: dict[Any, Any] = {}

    def _all(self) -> dict[Any, Any]:
        if self._make is not None:
            self._made, self._make = self._make(), None
        return self._made

    def __getitem__(self, key: Any) -> Any:
        return self._all()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __reduce__(self) -> tuple[type[dict[Any, Any]], tuple[dict[Any, Any]]]:
        return dict, (self._all(),)


@cache
def _batch_class(is_hetero: bool, is_recorded: bool) -> type[Batch]:
    """PyG's class; making a `Batch` by its own door looks it up and builds it each time."""
    from torch_geometric.data import Batch, Data, HeteroData

    if not is_recorded:
        return type(Batch(_base_cls=HeteroData if is_hetero else Data))
    from streamshard.stream.recorded import RecordedData, RecordedHeteroData

    return type(Batch(_base_cls=RecordedHeteroData if is_hetero else RecordedData))


def graph_batch(block: Block, column: Column, memory: torch.Tensor | None) -> Batch:
    """The PyG `Batch` that lies in a block.

    Args:
        block: The block.
        column: The part.
        memory: The block's memory on another device, or None.
    """
    shape: Shape = column.extra
    is_hetero = any(store for store, _ in shape.nodes)
    batch: Any = type.__call__(_batch_class(is_hetero, bool(shape.cat_dims)))
    if shape.cat_dims:
        batch.__dict__["_cat_dims"] = dict(shape.cat_dims)
    stores = {store: _store_of(batch, store, is_hetero) for store in _stores(shape, is_hetero)}
    # Not through the stores' own door, which looks for cached values to drop: these are new.
    mappings = {store: of._mapping for store, of in stores.items()}
    for name, number in zip(shape.entries, column.entries, strict=True):
        store, attribute = parted(name)
        mappings[store][attribute] = block.view(number, memory)
    for store, row in shape.nodes:
        if row >= 0:
            nodes = block.view(shape.table)[row].tolist()
            stores[store]._num_nodes = nodes
            stores[store].num_nodes = sum(nodes)
    batch._num_graphs = shape.graphs
    # The table alone: the block may be far larger, and is kept by those that need it.
    table = block.view(shape.table)
    batch._slice_dict = Lazy(partial(_slices, shape, table))
    batch._inc_dict = Lazy(partial(_increments, shape, table))
    return batch


def _stores(shape: Shape, is_hetero: bool) -> list[str]:
    """Names of the stores, the global one of a `HeteroData` first."""
    return [*([""] if is_hetero else []), *(store for store, _ in shape.nodes), *shape.edge_types]


def _store_of(batch: Any, name: str, is_hetero: bool) -> Any:
    if not name:
        return batch._global_store if is_hetero else batch._store
    return batch[_key(name)]


def _slices(shape: Shape, rows: torch.Tensor) -> dict[Any, Any]:
    """Where each graph's part of each field begins and ends."""
    ones = torch.ones(shape.graphs, dtype=torch.int64)

    def of(table: Table) -> torch.Tensor:
        return _before(ones if table.rows < 0 else rows[table.rows], whole=True)

    return _by_store(shape, of)


def _increments(shape: Shape, rows: torch.Tensor) -> dict[Any, Any]:
    """What each graph's indices were raised by."""
    nothing = torch.zeros(shape.graphs, dtype=torch.int64)

    def of(table: Table) -> torch.Tensor:
        if len(table.increments) < 2:
            return _before(rows[table.increments[0]] if table.increments else nothing)
        # (graphs, rows of the field, 1, …), as PyG has it
        every = torch.stack([_before(rows[row]) for row in table.increments], 1)
        return every.reshape(*every.shape, *[1] * (table.dims - 1))

    return _by_store(shape, of)


def _before(sizes: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
    """The running sums before each, and where `whole` the last too."""
    sums = torch.zeros(len(sizes) + 1, dtype=torch.int64)
    torch.cumsum(sizes, 0, out=sums[1:])
    return sums if whole else sums[:-1]


def _by_store(shape: Shape, of: Callable[[Table], torch.Tensor]) -> dict[Any, Any]:
    types = [*(store for store, _ in shape.nodes if store), *shape.edge_types]
    # Types without fields too: PyG leaves them out, and then can't take its batch apart.
    found: dict[Any, Any] = {_key(store): {} for store in types}
    for table in shape.tables:
        store, attribute = parted(table.field)
        into = found[_key(store)] if store else found
        into[attribute] = of(table)
    return found


def _key(store: str) -> str | tuple[str, ...]:
    """What PyG calls a store."""
    words = tuple(store.split("/"))
    return words if len(words) > 1 else store
