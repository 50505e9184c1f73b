"""What other readers want beside the shards: the same facts in their formats, as bytes.

wids        `.streamshard/wids.json`, read by webdataset's `wids`: each shard's URL, relative to
            that file, its samples, size and MD5.
            https://github.com/webdataset/webdataset (0.2.111), wids/wids_index.py
DALI        `shard-000000.idx`, for `fn.readers.webdataset(index_paths=…)`: `v1.2 SAMPLES`, then a
            line a sample with `part offset size name` of each part, offset that of the data.
            https://github.com/NVIDIA/DALI, tools/wds2idx.py
Energon     `shard-000000.tar.idx`: little-endian u64, the header offset of each sample, then the
            end of the last member. `.nv-meta/` has the shards with their samples in order, a split
            that is all `train`, what a sample is (crude: the parts as they are), and every sample
            and part in an SQLite file.
            https://github.com/NVIDIA/Megatron-Energon (7.4.1), flavors/webdataset/

None of them tells a time, a host or a place: the same dataset has the same files. (SQLite notes its
own release in the file, so those bytes are the same for one release.)
"""

from __future__ import annotations

import json
import re
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from io import BufferedIOBase
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import DatasetError
from streamshard.shard import tar
from streamshard.shard.index import MISSING, Index
from streamshard.shard.manifest import FOLDER, Manifest, Part

FORMATS = ("wids", "dali", "energon")
WIDS = f"{FOLDER}/wids.json"  # hidden: beside a single tar, HF datasets would read it instead
ENERGON = ".nv-meta"
ENERGON_SQLITE = f"{ENERGON}/index.sqlite"
ENERGON_FILES = (".info.json", "split.yaml", "dataset.yaml", "index.sqlite", "index.uuid")

_ENERGON_VERSION = "7.4.1"  # whose layout this is
_DALI_RULE = re.compile(r"[!-~]+")  # names are ASCII there, and stand between spaces
_TABLES = """
PRAGMA page_size = 4096;
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE,
    sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
    content_byte_offset INTEGER, content_byte_size INTEGER);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts(tar_file_id, sample_index, part_name,
    content_byte_offset, content_byte_size);
"""


def dali_name(shard: str) -> str:
    """The name of a shard's index for DALI.

    >>> dali_name("shard-000000.tar")
    'shard-000000.idx'
    """
    return f"{shard.removesuffix('.tar')}.idx"


def energon_name(shard: str) -> str:
    """The name of a shard's index for Energon.

    >>> energon_name("shard-000000.tar")
    'shard-000000.tar.idx'
    """
    return f"{shard}.idx"


class Members(NamedTuple):
    """The parts of all samples of a shard in the order of the tar: four arrays of one length.

    Attributes:
        row: Of the sample.
        part: Number of the part among the manifest's.
        offset: Of the data.
        size: Bytes of data.
    """

    row: NDArray[np.int64]
    part: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    @classmethod
    def of(cls, index: Index, parts: Mapping[str, Part]) -> Members:
        """Take them from a shard's index."""
        columns = []
        for number, (name, part) in enumerate(parts.items()):
            extent = index.extent(name, optional=part.optional)
            rows = np.flatnonzero(extent.size != MISSING)
            columns.append(
                (rows, np.full(len(rows), number), extent.offset[rows], extent.size[rows])
            )
        row, part_number, offset, size = (
            np.concatenate(column).astype(np.int64) for column in zip(*columns, strict=True)
        )
        order = np.argsort(offset, kind="stable")
        return cls(row[order], part_number[order], offset[order], size[order])

    def begins(self, nbytes: int) -> NDArray[np.int64] | None:
        """Where each sample's first header begins, then the end of the last member.

        Args:
            nbytes: Size of the tar.

        Returns:
            (samples + 1,), or None where the index alone can't tell: something other than plain
            headers lies between the parts, as in tars that others wrote.
        """
        headers = self.offset - tar.BLOCK
        ends = self.offset + self.size + -self.size % tar.BLOCK
        if not len(headers) or ends[-1] + len(tar.END) != nbytes:
            return None
        if headers[0] != 0 or np.any(headers[1:] != ends[:-1]):
            return None
        return np.append(headers[self._firsts()], ends[-1])

    def by_sample(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Each sample's row and the numbers of its members, in the order of the tar."""
        firsts = self._firsts()
        runs = np.split(np.arange(len(self.row)), firsts[1:])
        return list(zip(self.row[firsts].tolist(), runs, strict=True))

    def _firsts(self) -> NDArray[np.int64]:
        return np.flatnonzero(np.diff(self.row, prepend=-1))


def scan_begins(file: BufferedIOBase, size: int, where: str) -> NDArray[np.int64]:
    """What `Members.begins` tells, from the tar itself; reads its headers.

    Args:
        file: The tar, seekable.
        size: Of the tar.
        where: What to call it in errors.
    """
    begins, end, current = [], 0, None
    for member in tar.scan(file, size, where):
        end = member.offset + member.size + tar.padding(member.size)
        split = tar.split_name(member.name)
        if split and split[0] != current:
            current = split[0]
            begins.append(member.header)
    return np.array([*begins, end], np.int64)


def wids_bytes(manifest: Manifest, md5s: Sequence[str]) -> bytes:
    """The index of a dataset for wids.

    Args:
        manifest: Of the dataset.
        md5s: Of each tar, in hex digits.
    """
    shards = [
        {
            "url": f"../{shard.name}",
            "nsamples": shard.samples,
            "filesize": shard.nbytes,
            "md5sum": md5,
        }
        for shard, md5 in zip(manifest.table, md5s, strict=True)
    ]
    # The name is that of the folder in which wids caches remote shards, so it is one of a kind.
    head = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": manifest.fingerprint,
        "shardlist": shards,
    }
    return _json(head)


def dali_bytes(members: Members, keys: Sequence[str], suffixes: Sequence[str], where: str) -> bytes:
    """The index of a shard for DALI.

    Args:
        members: Of the shard.
        keys: Of its samples.
        suffixes: Of the manifest's parts.
        where: What to call the shard in errors.

    Raises:
        DatasetError: A name has a space or something outside ASCII, which DALI can't read.
    """
    lines = [f"v1.2 {len(keys)}"]
    part, offset, size = members.part.tolist(), members.offset.tolist(), members.size.tolist()
    for row, numbers in members.by_sample():
        fields = []
        for number in numbers.tolist():
            suffix = suffixes[part[number]]
            name = f"{keys[row]}.{suffix}"
            if not _DALI_RULE.fullmatch(name):
                raise DatasetError(
                    f"{where}: {name!r} has a space or is not ASCII, which DALI's index can't hold"
                )
            fields.append(f"{suffix} {offset[number]} {size[number]} {name}")
        lines.append(" ".join(fields))
    return ("\n".join(lines) + "\n").encode("ascii")


def energon_bytes(begins: NDArray[np.int64]) -> bytes:
    """The index of a shard for Energon, from what `Members.begins` tells."""
    return begins.astype("<u8").tobytes()


def energon_files(manifest: Manifest) -> dict[str, bytes]:
    """Names and bytes of Energon's small files, in the order in which to write them.

    The UUID is the dataset's fingerprint: it tells Energon whether an index is the one that another
    was made with.
    """
    table = manifest.table
    names = list(table.names)
    counts = dict(zip(names, table.samples.tolist(), strict=True))
    split = ["split_parts:", "  train:", *(f"  - {_yaml_name(name)}" for name in names)]
    split += ["  val: []", "  test: []", "exclude: []"]
    files = {
        "dataset.yaml": b"__module__: megatron.energon\n__class__: CrudeWebdataset\n",
        "split.yaml": ("\n".join(split) + "\n").encode(),
        "index.uuid": str(uuid.UUID(manifest.fingerprint)).encode(),
        ".info.json": _json({"energon_version": _ENERGON_VERSION, "shard_counts": counts}),
    }
    return {f"{ENERGON}/{name}": data for name, data in files.items()}


def _yaml_name(name: str) -> str:
    """A quoted name; Energon expands braces in it."""
    return json.dumps(re.sub(r"([{}])", r"\\\1", name))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


class EnergonTables:
    """Energon's table of all samples and their parts, shard by shard, in an SQLite file.

    A file, and not bytes: it is larger than the rest of the sidecars together.
    """

    def __init__(self, path: str) -> None:
        """Begin a file.

        Args:
            path: An empty file, which is not durable before it is copied elsewhere.
        """
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_TABLES)
        self._shards = 0

    def add(
        self,
        members: Members,
        begins: NDArray[np.int64],
        keys: Sequence[str],
        suffixes: Sequence[str],
        where: str,
    ) -> None:
        """Append the samples of the next shard.

        Args:
            members: Of the shard.
            begins: What `Members.begins` tells of it.
            keys: Of its samples.
            suffixes: Of the manifest's parts.
            where: What to call the shard in errors.

        Raises:
            DatasetError: A key is there twice, or is no text.
        """
        number, sizes = self._shards, np.diff(begins).tolist()
        for row, (begin, size) in enumerate(zip(begins[:-1].tolist(), sizes, strict=True)):
            try:
                self._database.execute(
                    "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                    (number, keys[row], row, begin, size),
                )
            except sqlite3.IntegrityError:
                raise DatasetError(
                    f"{where}: key {keys[row]} is in a shard before too; Energon's are unique"
                ) from None
            except UnicodeEncodeError:
                raise DatasetError(
                    f"{where}: key {keys[row]!r} is not UTF-8, as Energon's are"
                ) from None
        rows = zip(
            members.row.tolist(),
            members.part.tolist(),
            members.offset.tolist(),
            members.size.tolist(),
            strict=True,
        )
        self._database.executemany(
            "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
            ((number, row, suffixes[part], offset, size) for row, part, offset, size in rows),
        )
        self._shards += 1

    def finish(self) -> None:
        """Make the tables' indexes; the file is whole from here on."""
        self._database.executescript(_INDEXES)
        self._database.commit()
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
