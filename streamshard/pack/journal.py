"""The journal of a pack: what is finished of it, and how many inputs that took.

It lies in `.streamshard/` beside what it tells of, and goes away when the manifest is there:

    journal.json                 the head: what is packed, and with which options
    journal.safetensors          the files of the source, with size and time
    shard-000000.journal.json    a line for each finished shard, written after its tar and index

Packing is deterministic, so a pack goes on from its last line as if it had not been interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from zlib_ng.zlib_ng import crc32

from streamshard.codec.base import Packed, Schema
from streamshard.errors import DamagedError, NotFoundError, PackError
from streamshard.pack.files import Files, difference
from streamshard.shard import columns
from streamshard.shard.index import Index
from streamshard.shard.manifest import FOLDER, Shard, index_name
from streamshard.store.base import Store
from streamshard.store.filesystem import open_store
from streamshard.store.local import LocalStore

JOURNAL = f"{FOLDER}/journal.json"
FILES = f"{FOLDER}/journal.safetensors"
_ANEW = "--overwrite (overwrite=True) begins anew"


def line_name(shard: str) -> str:
    """The name of a shard's line.

    >>> line_name("shard-000000.tar")
    '.streamshard/shard-000000.journal.json'
    """
    return f"{FOLDER}/{shard.removesuffix('.tar')}.journal.json"


class Line(NamedTuple):
    """What is known when a shard is finished.

    Attributes:
        shard: Its row in the shard table.
        inputs: How many inputs are whole in this and all shards before, or were left out.
        within: How many samples of the input after them were taken; it goes on in the next shard.
        last: The number of the input that the last sample is of.
        last_within: The number of the last sample among those of its input.
        dropped: How many of the inputs gave no sample.
        skipped: Why samples were skipped, since the line before.
        schemas: By part, of all samples so far.
    """

    shard: Shard
    inputs: int
    within: int
    last: int
    last_within: int
    dropped: int
    skipped: list[str]
    schemas: dict[str, Schema]

    def to_bytes(self) -> bytes:
        """The file of a line."""
        digests = {"sha256": self.shard.sha256.hex(), "index_sha256": self.shard.index_sha256.hex()}
        value = {**self._asdict(), "shard": {**self.shard._asdict(), **digests}}
        return (json.dumps(value, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Line:
        """Read it again.

        Raises:
            ValueError, KeyError or TypeError: It is none.
        """
        value = json.loads(data)
        shard = value.pop("shard")
        digests = {name: bytes.fromhex(shard[name]) for name in ("sha256", "index_sha256")}
        return cls(Shard(**{**shard, **digests}), **value)


class Journal:
    """The journal of one destination.

    Attributes:
        inputs: How many were taken so far, each with all of its samples.
        within: How many samples were taken of the input after them.
        last: The number of the input that the last sample is of; -1 if there is none.
        last_within: The number of the last sample among those of its input.
        dropped: How many of the inputs gave no sample.
        skipped: Why samples were skipped, all of them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._about: Mapping[str, Any] = {}
        self._files: Files | None = None
        self._lines: list[str] = []
        self._told = 0  # skipped inputs that are in a line
        self._lies_there = False
        self._last_shard = ""
        self.inputs = self.within = self.last_within = self.dropped = 0
        self.last = -1
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def begin(self, about: Mapping[str, Any], files: Files | None) -> list[Line]:
        """Say what is packed, before anything is.

        Args:
            about: Source and options, as JSON has them.
            files: Of the source, if it lies in any.

        Returns:
            The lines of what is finished already.

        Raises:
            PackError: That was another source, or other options.
        """
        self._about, self._files = json.loads(json.dumps(about)), files
        head = self._head()
        if head is None:
            return []
        self._compare(head, [name for name in {**head, **self._about} if name != "inputs"])
        lines = list(read_lines(self._store))
        if lines:
            self._check_files(lines[-1].inputs + bool(lines[-1].within))
            self._compare(head, ["inputs"])
        return lines

    def _compare(self, head: Mapping[str, Any], names: Iterable[str]) -> None:
        for name in names:
            then, now = head.get(name), self._about.get(name)
            if then != now:
                raise PackError(
                    f"{self._store.where}: the pack that was not finished has {name} "
                    f"{_said(then)}, this one {_said(now)}; {_ANEW}"
                )

    def take_over(self, lines: Sequence[Line]) -> None:
        """Go on behind these lines."""
        self._lines = [line_name(line.shard.name) for line in lines]
        self.skipped = [reason for line in lines for reason in line.skipped]
        self._told = len(self.skipped)
        if lines:
            line = lines[-1]
            self.inputs, self.within, self.dropped = line.inputs, line.within, line.dropped
            self.last, self.last_within = line.last, line.last_within
            self._last_shard = line.shard.name

    def is_last(self, key: str, packed: Mapping[str, Packed]) -> bool:
        """Whether this is, byte for byte, the last sample of what was taken over."""
        name = index_name(self._last_shard)
        index = Index(columns.from_buffer(self._store.map(name), name), name)
        found = {part: crc32(value.data) for part, value in packed.items()}
        crcs = {part: int(index.extent(part, optional=True).crc32[-1]) for part in packed}
        return (index.keys[len(index) - 1], crcs) == (key, found)

    def _head(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._store.map(JOURNAL).tobytes()))
        except NotFoundError:
            return None
        except (ValueError, TypeError):
            raise PackError(f"{self._store.where}/{JOURNAL}: not a journal; {_ANEW}") from None

    def _check_files(self, inputs: int) -> None:
        if self._files is None:
            return
        where = f"{self._store.where}/{FILES}"
        try:
            then = Files.from_buffer(self._store.map(FILES), where)
        except (DamagedError, KeyError, NotFoundError) as error:
            raise PackError(f"{where}: not a list of files ({error}); {_ANEW}") from None
        what = difference(then, self._files, inputs if self._files.one_each else None)
        if what:
            raise PackError(
                f"{self._store.where}: the source is not what it was when the pack began: "
                f"{what}; {_ANEW}"
            )

    def open(self) -> None:
        """Write what is packed, before the first shard is; a second time is nothing."""
        if self._lies_there:
            return
        if self._files is not None:  # stamps of what is still to come may be others than before
            self._write(FILES, self._files.to_bytes())
            self._files = None  # they may be many
        self._write(JOURNAL, (json.dumps(self._about, indent=1) + "\n").encode())
        self._lies_there = True

    def note(self, reason: str | None = None) -> None:
        """A sample of the input was taken: it is in a shard, or was skipped for a reason."""
        if reason is None:
            self.last, self.last_within = self.inputs, self.within
        else:
            self.skipped.append(reason)
        self.within += 1

    def end_input(self) -> None:
        """All samples of the input were taken; there may be none."""
        self.dropped += not self.within
        self.inputs, self.within = self.inputs + 1, 0

    def add(self, shard: Shard, schemas: dict[str, Schema]) -> None:
        """A shard is finished."""
        line = Line(
            shard=shard,
            inputs=self.inputs,
            within=self.within,
            last=self.last,
            last_within=self.last_within,
            dropped=self.dropped,
            skipped=self.skipped[self._told :],
            schemas=schemas,
        )
        self._write(line_name(shard.name), line.to_bytes())
        self._lines.append(line_name(shard.name))
        self._told = len(self.skipped)

    def _write(self, name: str, data: bytes) -> None:
        with self._store.create(name) as file:
            file.write(data)

    def remove(self) -> None:
        """The manifest tells everything now."""
        names = {*self._store.list(FOLDER)}
        for name in [*self._lines, FILES, JOURNAL]:
            if name.removeprefix(f"{FOLDER}/") in names:
                self._store.remove(name)


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


def read_lines(store: Store) -> Iterator[Line]:
    """The lines of the shards from the first on, as far as there is no gap."""
    names = {*store.list(FOLDER)}
    number = 0
    while True:
        shard = f"shard-{number:06d}.tar"
        if line_name(shard).removeprefix(f"{FOLDER}/") not in names:
            return
        try:
            line = Line.from_bytes(store.map(line_name(shard)).tobytes())
        except (ValueError, KeyError, TypeError):
            return
        if line.shard.name != shard:
            return
        yield line
        number += 1


def progress_of(destination: str) -> tuple[int, int]:
    """The finished shards of a pack that was not finished, and how many inputs they took."""
    lines = list(read_lines(open_store(destination)))
    return len(lines), lines[-1].inputs if lines else 0


def index_if_whole(store: Store, shard: Shard) -> bytes | None:
    """The index of a finished shard; None where it or its tar is not what was written.

    A tar on this machine is read and its hash compared. Of one elsewhere it is the size: a store
    publishes a file whole, and to read it would be to fetch it.
    """
    try:
        index = store.map(index_name(shard.name)).tobytes()
        if hashlib.sha256(index).digest() != shard.index_sha256:
            return None
        if not isinstance(store, LocalStore):
            file = store.open(shard.name)
            return index if file.size == shard.nbytes else None
        with store.stream(shard.name) as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
    except NotFoundError:
        return None
    return index if digest == shard.sha256 else None
