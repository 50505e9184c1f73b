"""The shard that is being written."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence

from zlib_ng.zlib_ng import crc32

from streamshard.codec.base import Packed
from streamshard.codec.registry import suffix_of
from streamshard.errors import PackError
from streamshard.pack.outlet import Outlet
from streamshard.shard import tar
from streamshard.shard.index import Cell, IndexBuilder
from streamshard.shard.manifest import Shard, index_name
from streamshard.shard.sizes import SizesBuilder
from streamshard.store.base import Store


class OpenShard:
    """A tar that grows sample by sample, and its index.

    Attributes:
        keys: And their hashes.
    """

    def __init__(self, store: Store, name: str, parts: Sequence[str]) -> None:
        self._store, self._name = store, name
        self._context = contextlib.ExitStack()
        file = self._context.enter_context(store.create(name))
        self._outlet = Outlet(file, f"{store.where}/{name}")
        self._index = IndexBuilder(parts)
        self._parts = parts
        self.keys: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._outlet.size

    def append(self, key: str, key_hash: int, packed: Mapping[str, Packed]) -> None:
        """Append a sample."""
        self.keys[key] = key_hash
        cells = {}
        for part in self._parts:
            data, facts, _ = packed[part]
            name = f"{key}.{suffix_of(part)}"
            begin, size = self._outlet.size, len(data)
            self._outlet.put(tar.header(name, size))
            self._outlet.put(data)
            self._outlet.put(bytes(tar.padding(size)))
            member = tar.Member(name, begin, begin + tar.BLOCK, size)
            cells[part] = Cell(member, crc32(data), facts)
        self._index.add(key, cells)

    def finish(self, sizes: SizesBuilder) -> Shard:
        """Publish the tar, then its index; take note of the sizes of its graphs."""
        self._outlet.put(tar.END)
        sha256 = self._outlet.finish()
        self._context.close()
        index = self._index.to_bytes()
        sizes.add(index)
        with self._store.create(index_name(self._name)) as file:
            file.write(index)
        return Shard(
            self._name,
            len(self._index),
            self.size,
            sha256,
            hashlib.sha256(index).digest(),
        )

    def abandon(self) -> None:
        """Leave nothing of this shard behind."""
        self._outlet.stop()
        error = PackError("abandoned")
        self._context.__exit__(PackError, error, None)
