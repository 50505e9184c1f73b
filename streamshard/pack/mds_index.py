"""The index of a MosaicML dataset: its columns, and which files its samples lie in.

Format, version 2, as the writer of mosaicml-streaming has it:
https://docs.mosaicml.com/projects/streaming/en/stable/fundamentals/dataset_format.html
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from zlib_ng.zlib_ng import crc32

from streamshard.errors import NotFoundError, PackError, StoreError
from streamshard.pack.files import Stamp
from streamshard.store.base import Store

INDEX = "index.json"


class DataFile(NamedTuple):
    """A file as the index has it.

    Attributes:
        name: Below the folder.
        nbytes: Its size.
        hashes: Hex digests by algorithm.
    """

    name: str
    nbytes: int
    hashes: Mapping[str, str]


class MdsShard(NamedTuple):
    """One shard.

    Attributes:
        raw: Its file.
        packed: The same compressed, if it is.
        compression: How: br, bz2, gz, snappy or zstd.
        samples: How many it has.
    """

    raw: DataFile
    packed: DataFile | None
    compression: str
    samples: int

    @property
    def lying(self) -> DataFile:
        """The file that is read."""
        return self.packed or self.raw


class MdsIndex(NamedTuple):
    """What an index says.

    Attributes:
        columns: Names, encodings, and sizes in bytes, 0 where they vary.
        shards: In order.
        stamp: Of the index itself.
    """

    columns: tuple[tuple[str, str, int], ...]
    shards: tuple[MdsShard, ...]
    stamp: Stamp


def read_index(store: Store) -> MdsIndex:
    """Read the index of a folder.

    Raises:
        PackError: There is none, or it is not one of version 2 of shards that all have the same
            columns, and a sample.
        StoreError: It can't be read.
    """
    where = f"{store.where}/{INDEX}"
    try:
        data = store.map(INDEX).tobytes()
    except NotFoundError:
        raise PackError(_no_index(store)) from None
    try:
        value = json.loads(data)
        version = value["version"]
        if version != 2:
            raise PackError(f"{where}: version {version}; version 2 is read")
        found = [_shard(one, f"{where}: shard {n}") for n, one in enumerate(value["shards"])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackError(f"{where}: no index of MDS ({type(error).__name__}: {error})") from None
    for number, (columns, _) in enumerate(found):
        if columns != found[0][0]:
            raise PackError(f"{where}: shard {number} has other columns than shard 0")
    names = [name for name, _, _ in found[0][0]] if found else []
    if len({*names}) < len(names):
        raise PackError(f"{where}: a column is there twice: {', '.join(names)}")
    if not sum(shard.samples for _, shard in found):
        raise PackError(f"{where}: no sample in it")
    shards = tuple(shard for _, shard in found)
    return MdsIndex(found[0][0], shards, Stamp(len(data), crc32(data)))


def uncompressed(index: MdsIndex, store: Store) -> MdsIndex:
    """The same, without the compressed files of shards that lie there as they are, too."""
    there: set[str] = set()
    with contextlib.suppress(StoreError):  # plain web servers do not list
        for folder in {str(PurePosixPath(shard.raw.name).parent) for shard in index.shards}:
            prefix = "" if folder == "." else f"{folder}/"
            there |= {f"{prefix}{name}" for name in store.list(prefix.rstrip("/"))}
    shards = (
        shard._replace(packed=None) if shard.raw.name in there else shard for shard in index.shards
    )
    return index._replace(shards=tuple(shards))


def _no_index(store: Store) -> str:
    below = [name for name in store.list() if store.exists(f"{name}/{INDEX}")]
    if not below:
        return f"{store.where}: no {INDEX} there, which a MosaicML dataset has"
    return (
        f"{store.where}: no {INDEX} there, but in {', '.join(below)} below it; each is a dataset, "
        f"such as {store.where}/{below[0]}"
    )


def _shard(
    value: Mapping[str, Any], where: str
) -> tuple[tuple[tuple[str, str, int], ...], MdsShard]:
    if value["format"] != "mds" or value["version"] != 2:
        raise PackError(
            f"{where}: format {value['format']} version {value['version']}; mds version 2 is read"
        )
    sizes = [int(size or 0) for size in value["column_sizes"]]
    columns = tuple(zip(value["column_names"], value["column_encodings"], sizes, strict=True))
    packed = value.get("zip_data")
    compression = (value.get("compression") or "").partition(":")[0]
    return columns, MdsShard(
        _file(value["raw_data"], where),
        _file(packed, where) if packed else None,
        compression,
        int(value["samples"]),
    )


def _file(value: Mapping[str, Any], where: str) -> DataFile:
    name = PurePosixPath(value["basename"])
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise PackError(f"{where}: its file {value['basename']!r} lies outside the folder")
    hashes = {str(kind): str(digest) for kind, digest in (value.get("hashes") or {}).items()}
    return DataFile(str(name), int(value["bytes"]), hashes)
