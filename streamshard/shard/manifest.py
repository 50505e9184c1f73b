"""A dataset: its shards, what their parts mean, and a fingerprint.

`.streamshard/manifest.json` is a small head, written last: the dataset exists when it does.
`.streamshard/shards.safetensors` is the shard table as columns, so that a million shards open at
once. Nothing in them tells when, where or by whom the dataset was made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import DamagedError, DatasetError
from streamshard.shard import columns

VERSION = 1
FOLDER = ".streamshard"
HEAD = f"{FOLDER}/manifest.json"
TABLE = f"{FOLDER}/shards.safetensors"

_SHARD_NAME = re.compile(r"[^/\\:\0\n]+\.tar")


class Source(Protocol):
    """What this room asks of a store: whole small files by name, memory-mapped where possible."""

    def map(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a file, (bytes,) uint8."""


def index_name(shard: str) -> str:
    """The name of a shard's index.

    >>> index_name("shard-000000.tar")
    '.streamshard/shard-000000.index.safetensors'
    """
    return f"{FOLDER}/{shard.removesuffix('.tar')}.index.safetensors"


@dataclass(frozen=True)
class Part:
    """What one part of every sample is.

    Attributes:
        suffix: What follows the key and a dot in the tar (`jpg`, `graph.safetensors`).
        codec: The name of the codec that gives its bytes a meaning.
        schema: What that codec found to hold for every sample (a shape, a dtype).
        optional: Whether some samples lack it.
    """

    suffix: str
    codec: str
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optional: bool = False


class Shard(NamedTuple):
    """One row of the shard table.

    Attributes:
        name: File name of the tar.
        samples: Samples in it.
        nbytes: Size of the tar.
        sha256: Of the tar, 32 bytes.
        index_sha256: Of its index, 32 bytes.
    """

    name: str
    samples: int
    nbytes: int
    sha256: bytes
    index_sha256: bytes


class ShardTable(Sequence[Shard]):
    """The shards of a dataset in order, as columns.

    Attributes:
        names: File names.
        samples: (shards,) int64.
        nbytes: (shards,) int64, size of each tar.
        sha256: (shards, 32) uint8, of each tar.
        index_sha256: (shards, 32) uint8, of each index.
    """

    def __init__(self, arrays: columns.Columns) -> None:
        """Take the columns.

        Raises:
            ValueError: They do not have one length.
            KeyError: One is missing.
        """
        self.names = columns.Strings(
            cast("NDArray[np.uint8]", arrays["name.data"]),
            cast("NDArray[np.int64]", arrays["name.ends"]),
        )
        self.samples = cast("NDArray[np.int64]", arrays["samples"])
        self.nbytes = cast("NDArray[np.int64]", arrays["nbytes"])
        self.sha256 = cast("NDArray[np.uint8]", arrays["sha256"])
        self.index_sha256 = cast("NDArray[np.uint8]", arrays["index_sha256"])
        shards = len(self.names)
        shapes = {name: array.shape for name, array in arrays.items() if name != "name.data"}
        for name, shape in shapes.items():
            if shape != ((shards, 32) if name.endswith("sha256") else (shards,)):
                raise ValueError(f"column {name} of shape {shape} in a table of {shards} shards")

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> ShardTable:
        """Turn rows into columns."""
        names = columns.Strings.of([shard.name for shard in shards])
        digests = [
            np.frombuffer(b"".join(column), np.uint8).reshape(-1, 32)
            for column in (
                [shard.sha256 for shard in shards],
                [shard.index_sha256 for shard in shards],
            )
        ]
        return cls(
            {
                "name.data": names.data,
                "name.ends": names.ends,
                "samples": np.array([shard.samples for shard in shards], np.int64),
                "nbytes": np.array([shard.nbytes for shard in shards], np.int64),
                "sha256": digests[0],
                "index_sha256": digests[1],
            }
        )

    def to_bytes(self) -> bytes:
        """The table file."""
        return columns.to_bytes(
            {
                "name.data": self.names.data,
                "name.ends": self.names.ends,
                "samples": self.samples,
                "nbytes": self.nbytes,
                "sha256": self.sha256,
                "index_sha256": self.index_sha256,
            }
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Shard:  # type: ignore[override]
        name = self.names[number]
        if not _SHARD_NAME.fullmatch(name) or name.startswith("."):
            raise DamagedError(f"shard name {name!r} is not a plain file name ending in .tar")
        return Shard(
            name,
            int(self.samples[number]),
            int(self.nbytes[number]),
            self.sha256[number].tobytes(),
            self.index_sha256[number].tobytes(),
        )

    def fingerprint(self) -> str:
        """32 hex digits over the format version and each shard's count and hash, in order.

        It does not depend on where the dataset lies or what its files are called.
        """
        digest = hashlib.sha256(b"streamshard %d\n" % VERSION)
        digest.update(np.ascontiguousarray(self.samples, "<i8"))
        digest.update(np.ascontiguousarray(self.sha256))
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Manifest:
    """A dataset's head and shard table.

    Attributes:
        parts: What the samples are made of, in the order of the tar.
        table: The shards.
        classes: Class names by `cls`, or None.
        fingerprint: Of the shards' counts and hashes.
        sizes_sha256: Of the file with the sizes of all graphs, in hex digits; None where there is
            none (see sizes.py).
    """

    parts: Mapping[str, Part]
    table: ShardTable
    classes: Sequence[str] | None = None
    fingerprint: str = ""
    sizes_sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", self.table.fingerprint())

    def __len__(self) -> int:
        return int(self.table.samples.sum())

    def select(self, names: Sequence[str], where: str) -> Manifest:
        """The dataset of some of its shards, in the order asked for.

        Raises:
            DatasetError: A name is not among the shards.
        """
        numbers = {name: number for number, name in enumerate(self.table.names)}
        missing = [name for name in names if name not in numbers]
        if missing:
            raise DatasetError(f"{where}: {missing[0]} is not in the dataset's manifest")
        table = ShardTable.of([self.table[numbers[name]] for name in names])
        return dataclasses.replace(self, table=table, fingerprint="", sizes_sha256=None)

    def to_files(self) -> dict[str, bytes]:
        """Names and bytes of the table and the head, in the order in which to write them."""
        table = self.table.to_bytes()
        head: dict[str, Any] = {
            "format": "streamshard",
            "version": VERSION,
            "samples": len(self),
            "shards": len(self.table),
            "bytes": int(self.table.nbytes.sum()),
            "parts": {name: dataclasses.asdict(part) for name, part in self.parts.items()},
            "classes": self.classes,
            "fingerprint": self.fingerprint,
            "table_sha256": hashlib.sha256(table).hexdigest(),
        }
        if self.sizes_sha256 is not None:
            head["sizes_sha256"] = self.sizes_sha256
        head["head_sha256"] = _head_hash(head)
        return {TABLE: table, HEAD: (json.dumps(head, indent=1) + "\n").encode()}


def _head_hash(head: Mapping[str, Any]) -> str:
    """A hash over everything else in the head, however it is spaced."""
    rest = {name: value for name, value in head.items() if name != "head_sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def read_manifest(source: Source, where: str) -> Manifest:
    """Read and check a dataset's manifest.

    Args:
        source: Where `.streamshard/` lies.
        where: What to call the dataset in errors.

    Raises:
        DatasetError: The format version is not this one.
        DamagedError: Head and table do not fit together.
    """
    head = read_head(source, where)
    data = source.map(TABLE)
    if hashlib.sha256(data).hexdigest() != head["table_sha256"]:
        raise DamagedError(f"{where}/{TABLE}: not the table that the manifest was written with")
    try:
        table = ShardTable(columns.from_buffer(data, f"{where}/{TABLE}"))
        parts = {name: Part(**part) for name, part in head["parts"].items()}
        sizes = head.get("sizes_sha256")
        manifest = Manifest(parts, table, head["classes"], sizes_sha256=sizes)
        whole = (manifest.fingerprint, len(manifest), len(table))
        written = (head["fingerprint"], head["samples"], head["shards"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(f"{where}/{HEAD}: {error!r} in the manifest") from None
    if whole != written:
        raise DamagedError(f"{where}/{HEAD}: the manifest says {written}, its table {whole}")
    return manifest


def read_head(source: Source, where: str) -> dict[str, Any]:
    """The head alone, as it was written.

    Raises:
        DatasetError: The format version is not this one.
        DamagedError: It is not whole.
    """
    data = source.map(HEAD).tobytes()
    try:
        head = json.loads(data)
        is_whole = head.get("head_sha256") == _head_hash(head)
        is_ours = head["format"] == "streamshard" and {"version", "table_sha256"} <= set(head)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{where}/{HEAD}: not a manifest ({error})") from None
    if not is_ours:
        raise DamagedError(f"{where}/{HEAD}: not a streamshard manifest")
    if head["version"] != VERSION:
        raise DatasetError(
            f"{where}: format version {head['version']}; this streamshard reads version {VERSION}"
        )
    if not is_whole:
        raise DamagedError(f"{where}/{HEAD}: changed after it was written")
    return cast("dict[str, Any]", head)


def read_index(source: Source, shard: Shard, where: str) -> columns.Columns:
    """The columns of one shard's index, checked against the hash in the shard table.

    Raises:
        DamagedError: The index is not the one that the manifest was written with.
    """
    name = index_name(shard.name)
    data = source.map(name)
    if hashlib.sha256(data).digest() != shard.index_sha256:
        raise DamagedError(
            f"{where}/{name}: out of step with the manifest; "
            "`streamshard verify` tells what is whole"
        )
    return columns.from_buffer(data, f"{where}/{name}")
