"""What PyG says of a graph: its fields, how each is batched, and how many nodes there are.

How a field is batched is not in its values but in PyG's classes, so it is asked for at pack: the
dimension along which graphs are concatenated (`__cat_dim__`) and what is added to the indices of
the graphs behind (`__inc__`). Fields of a `HeteroData` are named by their store: `paper/x`,
`author/writes/paper/edge_index`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:  # PyG takes seconds to import, and image users never need it
    from torch_geometric.data import Data, HeteroData

NODES = "num_nodes"
NODE_FIELDS = {"x", "feat", "pos", "batch", "node_type", "n_id"}  # one row for each node


class Field(NamedTuple):
    """One tensor of a graph.

    Attributes:
        name: With its store in front, in a `HeteroData`.
        tensor: On the CPU, without gradient.
        cat_dim: The dimension of concatenation, from the front; None where graphs are stacked.
        increments: What the indices of the graphs behind are raised by: nothing, one number, or one
            for each of the tensor's rows.
        was: The dtype that it had where it was widened, else "".
    """

    name: str
    tensor: torch.Tensor
    cat_dim: int | None
    increments: tuple[int, ...] = ()
    was: str = ""


class NodeCount(NamedTuple):
    """The nodes of a graph, or of one type of them.

    Attributes:
        store: "" in a `Data`, the type in a `HeteroData`.
        nodes: How many.
        is_set: Whether the graph had `num_nodes` set.
    """

    store: str
    nodes: int
    is_set: bool


class Graph(NamedTuple):
    """A graph, taken apart.

    Attributes:
        fields: In the order of PyG's stores.
        nodes: Of each type.
        edge_types: Source, relation and destination of each, joined by slashes; none in a `Data`.
    """

    fields: list[Field]
    nodes: list[NodeCount]
    edge_types: list[str]


def joined(store: str, name: str) -> str:
    """The name of a field of a store.

    >>> joined("paper", "x"), joined("", "x")
    ('paper/x', 'x')
    """
    return f"{store}/{name}" if store else name


def parted(name: str) -> tuple[str, str]:
    """Store and name of a field.

    >>> parted("author/writes/paper/edge_index")
    ('author/writes/paper', 'edge_index')
    """
    store, _, attribute = name.rpartition("/")
    return store, attribute


def check_name(name: str) -> None:
    """Refuse a name that PyG would keep beside the fields, where no batch has it.

    Raises:
        ValueError: It begins with an underscore.
    """
    if name.startswith("_"):
        raise ValueError(f"field {name!r}: PyG keeps no field whose name begins with _; rename it")


def take_apart(data: Data | HeteroData) -> Graph:
    """The fields of a graph and what PyG says of them.

    Raises:
        ValueError: It is no graph, holds what is no dense tensor, or PyG could not batch it right.
    """
    if not hasattr(data, "stores") or not hasattr(data, "__cat_dim__"):
        kind = type(data).__name__
        raise ValueError(f"{kind} is not a torch_geometric.data.Data or HeteroData")
    is_hetero = hasattr(data, "node_types")
    found: list[tuple[Any, Field]] = []  # with the store of each
    counts: list[NodeCount] = []
    edge_types: list[str] = []
    for store in data.stores:
        key = store_name(store._key)
        own = list(_fields(data, store, key))
        found += [(store, field) for field in own]
        if not is_hetero or isinstance(store._key, str):
            counts.append(_count_nodes(store, key, own))
        elif store._key is not None:
            edge_types.append(key)
    if is_hetero:
        _check_types(edge_types, {count.store for count in counts})
    # Only now, with the nodes known: PyG would guess them from the edges.
    fields = [field._replace(increments=_increments(data, store, field)) for store, field in found]
    return Graph(fields, counts, edge_types)


def _check_types(edge_types: list[str], node_types: set[str]) -> None:
    if not node_types:
        raise ValueError("a HeteroData without node types")
    for edge_type in edge_types:
        words = edge_type.split("/")
        if unknown := {words[0], words[-1]} - node_types:
            raise ValueError(f"edges {edge_type!r} lead to nodes of unknown type {min(unknown)!r}")


def store_name(key: Any) -> str:
    """What fields of one of PyG's stores have in front, without the slash.

    Raises:
        ValueError: A type's name would not come back.
    """
    words = () if key is None else (key,) if isinstance(key, str) else key
    if odd := [word for word in words if "/" in word or not word]:
        raise ValueError(f"type {odd[0]!r}: names of types are not empty and have no slash")
    return "/".join(words)


def _fields(data: Any, store: Any, key: str) -> Iterator[Field]:
    for name, value in store.items():
        if name == NODES:
            continue
        full = joined(key, name)
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise ValueError(f"field {full!r} is a {type(value).__name__}, not a dense tensor")
        if "/" in name:
            raise ValueError(f"field {full!r}: names of fields have no slash")
        tensor, was = value.detach().cpu(), ""
        if name == "edge_index":
            was = "int32" if tensor.dtype == torch.int32 else ""
            tensor = _checked_edges(full, tensor)
        yield Field(full, tensor, _cat_dim(data, store, full, tensor), was=was)


def _checked_edges(name: str, edges: torch.Tensor) -> torch.Tensor:
    """Edges as int64; int32 is widened without loss."""
    edges = edges.long() if edges.dtype == torch.int32 else edges
    if edges.dtype != torch.int64 or edges.dim() != 2 or edges.shape[0] != 2:
        raise ValueError(
            f"{name} is {edges.dtype} of shape {[*edges.shape]}, not int64 of [2, edges]"
        )
    return edges


def _cat_dim(data: Any, store: Any, full: str, tensor: torch.Tensor) -> int | None:
    cat_dim = data.__cat_dim__(parted(full)[1], tensor, store)
    if cat_dim is None or tensor.dim() == 0:
        return None
    if not isinstance(cat_dim, int):
        raise ValueError(f"field {full!r} is concatenated along {cat_dim}, not along one dimension")
    return cat_dim % tensor.dim()


def _increments(data: Any, store: Any, field: Field) -> tuple[int, ...]:
    full, tensor = field.name, field.tensor
    increment = data.__inc__(parted(full)[1], tensor, store)
    if isinstance(increment, torch.Tensor) and increment.dim() > 1:
        rows = tensor.shape[0] if tensor.dim() and field.cat_dim != 0 else -1
        if increment.shape != (rows, *[1] * (tensor.dim() - 1)):
            raise ValueError(
                f"field {full!r} has an increment of shape {[*increment.shape]}; one number, or "
                "one for each row of a field that is concatenated along another dimension"
            )
        numbers = increment.flatten().tolist()
    elif isinstance(increment, torch.Tensor) and increment.numel() != 1:
        raise ValueError(f"field {full!r} has an increment of {increment.numel()} numbers, not one")
    else:
        numbers = [int(increment)] if int(increment) else []
    if min(numbers, default=0) < 0:
        raise ValueError(f"field {full!r} has an increment of {min(numbers)}, below 0")
    return tuple(int(number) for number in numbers)


def _count_nodes(store: Any, key: str, fields: list[Field]) -> NodeCount:
    """The number of nodes, known and not guessed from the edges, as PyG would."""
    counts = {
        parted(field.name)[1]: field.tensor.shape[field.cat_dim]
        for field in fields
        if parted(field.name)[1] in NODE_FIELDS and field.cat_dim is not None
    }
    of = f" of type {key!r}" if key else ""
    stored = store.get(NODES)
    if stored is None and not counts:
        raise ValueError(f"the number of nodes{of} is not known: set num_nodes, or have x")
    nodes = int(stored) if stored is not None else next(iter(counts.values()))
    for name, count in counts.items():
        if count != nodes:
            raise ValueError(f"the graph has {nodes} nodes{of}, its field {name!r} {count}")
    if nodes < 0:
        raise ValueError(f"{NODES}{of} is {nodes}")
    return NodeCount(key, nodes, stored is not None)


def put_together(tensors: Mapping[str, torch.Tensor]) -> Data | HeteroData:
    """The graph that has these fields, `num_nodes` of each type among them."""
    from torch_geometric.data import Data, HeteroData

    fields = {name: tensor for name, tensor in tensors.items() if parted(name)[1] != NODES}
    if not any("/" in name for name in tensors):
        graph = Data(**fields)
        if NODES in tensors and not NODE_FIELDS & set(fields):
            graph.num_nodes = int(tensors[NODES])
        return graph
    hetero = HeteroData()
    for name, tensor in fields.items():
        _store_of(hetero, parted(name)[0])[parted(name)[1]] = tensor
    for name, tensor in tensors.items():
        store, attribute = parted(name)
        if attribute == NODES and not NODE_FIELDS & set(_store_of(hetero, store).keys()):
            hetero[store].num_nodes = int(tensor)
    return hetero


def _store_of(hetero: Any, name: str) -> Any:
    if not name:
        return hetero._global_store
    words = tuple(name.split("/"))
    return hetero[words[0] if len(words) == 1 else words]


def with_fields(data: Any, names: Sequence[str]) -> Any:
    """The graph with none but these fields, and the nodes that it had; it is changed."""
    for store in data.stores:
        key = store_name(store._key)
        dropped = [name for name in store if name != NODES and joined(key, name) not in names]
        if NODE_FIELDS & set(dropped) and not NODE_FIELDS & (set(store) - set(dropped)):
            store.num_nodes = store.num_nodes  # told by what is dropped
        for name in dropped:
            del store[name]
    return data


def without_others(data: Any) -> tuple[Any, dict[str, Any]]:
    """A graph with tensors only, and by store and name what else it held."""
    rest: dict[str, Any] = {}
    for store in data.stores:
        others = {
            name: value
            for name, value in dict(store).items()
            if name != NODES and not isinstance(value, torch.Tensor)
        }
        rest |= {joined(store_name(store._key), name): value for name, value in others.items()}
    if not rest:
        return data, rest
    tensors = data.clone()
    for store in tensors.stores:
        for name in [name for name in store if joined(store_name(store._key), name) in rest]:
            del store[name]
    return tensors, rest
