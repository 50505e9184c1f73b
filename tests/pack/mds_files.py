"""MDS by the least that writes it: columns as bytes, for datasets with something odd about them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Sequence[bytes]  # of each column
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress}


def shard_bytes(rows: Sequence[Row], sizes: Sequence[int]) -> bytes:
    """A shard; sizes are those of the columns, 0 where they vary."""
    samples = [
        b"".join(struct.pack("<I", len(v)) for v, n in zip(row, sizes, strict=True) if not n)
        + b"".join(row)
        for row in rows
    ]
    config = b"{}"
    at = [4 * (len(rows) + 2) + len(config)]
    for sample in samples:
        at.append(at[-1] + len(sample))
    return struct.pack(f"<{1 + len(at)}I", len(rows), *at) + config + b"".join(samples)


def write_mds(
    folder: Path,
    columns: Mapping[str, tuple[str, int]],
    shards: Sequence[Sequence[Row]],
    *,
    compression: str | None = None,
    hashes: Sequence[str] = ("sha1",),
) -> Path:
    """A dataset: encoding and size of each column, and the rows of each shard."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [size for _, size in columns.values()]
    entries = []
    for number, rows in enumerate(shards):
        data, name = shard_bytes(rows, sizes), f"shard.{number:05d}.mds"
        entry: dict[str, Any] = {
            "version": 2,
            "format": "mds",
            "column_names": [*columns],
            "column_encodings": [encoding for encoding, _ in columns.values()],
            "column_sizes": [size or None for size in sizes],
            "compression": compression,
            "hashes": [*hashes],
            "samples": len(rows),
            "size_limit": 1 << 26,
            "raw_data": entry_of(name, data, hashes),
            "zip_data": None,
        }
        if compression:
            name, data = f"{name}.{compression}", PACKERS[compression](data)
            entry["zip_data"] = entry_of(name, data, hashes)
        (folder / name).write_bytes(data)
        entries.append(entry)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    return folder


def entry_of(name: str, data: bytes, hashes: Sequence[str]) -> dict[str, Any]:
    digests = {
        kind: hashlib.new(kind, data).hexdigest() if kind in hashlib.algorithms_available else "0"
        for kind in hashes
    }
    return {"basename": name, "bytes": len(data), "hashes": digests}


def change_index(folder: Path, shard: int, **entries: Any) -> None:
    """Other entries for a shard in the index."""
    index = json.loads((folder / "index.json").read_text())
    index["shards"][shard] |= entries
    (folder / "index.json").write_text(json.dumps(index))
