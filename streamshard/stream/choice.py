"""Which fields of graphs a batch has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamshard.codec.pyg import parted
from streamshard.errors import UsageError


@dataclass(frozen=True)
class Graphs:
    """Which fields of graphs a batch has: `decode={"graph": ss.Graphs(fields=("x", "y"))}`.

    Names are those of PyG's attributes, in a `HeteroData` of all its stores, or with the store in
    front (`paper/x`, `author/writes/paper/edge_index`). Local shards are read only where the fields
    asked for lie. A transform gets graphs with these fields, and what it returns is batched by PyG.

    Attributes:
        fields: The fields to read; None for all. Nodes are counted in any case.
        follow_batch: Fields that get `NAME_batch` and `NAME_ptr`, as in `Batch.from_data_list`.
        exclude_keys: Fields to leave out, likewise.
    """

    fields: Sequence[str] | None = None
    follow_batch: Sequence[str] = ()
    exclude_keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("fields", "follow_batch", "exclude_keys"):
            names = getattr(self, name)
            if isinstance(names, str):
                raise UsageError(f"{name}={names!r}; a sequence of names is wanted: ({names!r},)")
            object.__setattr__(self, name, None if names is None else tuple(names))

    def chosen(self, schema: Mapping[str, Any]) -> list[str]:
        """The fields of a schema that are wanted, in its order.

        Raises:
            UsageError: A name is no field.
        """
        there = list(schema["fields"])
        for name in (*(self.fields or ()), *self.follow_batch, *self.exclude_keys):
            if not any(_names(name, field) for field in there):
                raise UsageError(f"graphs have no field {name!r}; they have {', '.join(there)}")
        wanted = there
        if self.fields is not None:
            wanted = [field for field in there if _any_names(self.fields, field)]
        return [field for field in wanted if not _any_names(self.exclude_keys, field)]

    def is_followed(self, field: str) -> bool:
        """Whether a field gets a batch vector of its own."""
        return _any_names(self.follow_batch, field)


def _names(name: str, field: str) -> bool:
    return name in (field, parted(field)[1])


def _any_names(names: Sequence[str], field: str) -> bool:
    return any(_names(name, field) for name in names)
