"""What a batch is of when graphs were of a class with rules of its own.

The class itself is not kept, but what it said when the graphs were packed: a batch must know along
which dimension each field was concatenated, to be taken apart again. Imported only where such a
batch is made, since it imports PyG.
"""

from __future__ import annotations

from typing import Any

from torch_geometric.data import Data, HeteroData

from streamshard.codec.pyg import joined, store_name


class _Recorded:
    """Looks up what was recorded before it asks PyG.

    Attributes:
        _cat_dims: By field, store in front, the dimension of concatenation; None where stacked.
    """

    def __cat_dim__(self, key: str, value: Any, store: Any = None, *args: Any, **more: Any) -> Any:
        recorded = self.__dict__.get("_cat_dims", {})
        field = joined(store_name(store._key) if store is not None else "", key)
        if field in recorded:
            return recorded[field]
        return super().__cat_dim__(key, value, store, *args, **more)  # type: ignore[misc]


class RecordedData(_Recorded, Data):  # type: ignore[misc]
    """A `Data` whose class had rules of its own."""


class RecordedHeteroData(_Recorded, HeteroData):  # type: ignore[misc]
    """A `HeteroData` whose class had rules of its own."""
