"""Samples back to files: one for each part, named as in the tar, never outside the folder given."""

from __future__ import annotations

import array
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamshard.errors import DatasetError, UsageError
from streamshard.store.base import HAS_SCHEME, full_disk_named, redact, translated
from streamshard.stream.keys import sizes_of
from streamshard.stream.reader import Shards

Progress = Callable[[int, int | None, int], None]


@dataclass(frozen=True)
class Unpacked:
    """What was written.

    Attributes:
        samples: Whose parts.
        files: One for each part.
        bytes: Of these files.
    """

    samples: int
    files: int
    bytes: int


def unpack(
    url: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    keys: Sequence[str] = (),
    index: str | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Unpacked:
    """Write the parts of samples as files `KEY.PART`, in the bytes that were packed.

    All names are looked at before anything is written. Every byte is checked as it is read.

    Args:
        url: Folder or URL of the dataset.
        out: Local folder; it is made where it is not there.
        keys: Only samples whose key is one of these, or matches one with wildcards (`* ? [ ]`).
        index: Where `.streamshard/` lies when it is not beside the tars.
        overwrite: Replace files that are there.
        storage_options: For fsspec.
        progress: Called with samples done, samples in all, and bytes done.

    Returns:
        What was written.

    Raises:
        UsageError: A file is there already, or `out` is a URL.
        DatasetError: A name leads out of the folder, or nothing matches one of `keys`.
        DamagedError: The bytes are not those that were packed.
        StoreError: A file can't be written.
    """
    if HAS_SCHEME.match(os.fspath(out)):
        raise UsageError(f"{redact(os.fspath(out))}: samples are unpacked to a local folder")
    shards = Shards(url, index=index, storage_options=storage_options)
    folder = _Folder(Path(out).expanduser(), overwrite=overwrite)
    wanted = _Wanted(keys)
    samples = 0
    for sample in _samples(shards, wanted):
        for name in sample.names(shards):
            folder.check(name, sample.where(shards))
        samples += 1
    wanted.check(shards.where)
    folder.check_twice(name for sample in _samples(shards, wanted) for name in sample.names(shards))
    files = nbytes = 0
    for done, sample in enumerate(_samples(shards, wanted), 1):
        for part, name in zip(sample.sizes, sample.names(shards), strict=True):
            data = shards.read(sample.shard, sample.row, part)
            assert data is not None
            folder.write(name, data, sample.where(shards))
            files, nbytes = files + 1, nbytes + len(data)
        if progress:
            progress(done, samples, nbytes)
    return Unpacked(samples, files, nbytes)


class _Sample(NamedTuple):
    shard: int
    row: int
    key: str
    sizes: Mapping[str, int]  # of the parts that it has

    def names(self, shards: Shards) -> list[str]:
        """Of its files."""
        return [f"{self.key}.{shards.manifest.parts[part].suffix}" for part in self.sizes]

    def where(self, shards: Shards) -> str:
        return f"{shards.shard_url(self.shard)}: key {self.key}"


def _samples(shards: Shards, wanted: _Wanted) -> Iterator[_Sample]:
    for shard in range(len(shards.manifest.table)):
        for row, key in enumerate(shards.index(shard).keys):
            if wanted(key):
                yield _Sample(shard, row, key, sizes_of(shards, shard, row))


class _Wanted:
    """Which keys were asked for, and which of the patterns has none."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._exact = {pattern for pattern in patterns if not any(c in pattern for c in "*?[")}
        self._patterns = [pattern for pattern in patterns if pattern not in self._exact]
        self._all = not patterns
        self._missed = set(patterns)

    def __call__(self, key: str) -> bool:
        hits = [pattern for pattern in self._patterns if fnmatch.fnmatchcase(key, pattern)]
        if key in self._exact:
            hits.append(key)
        self._missed.difference_update(hits)
        return self._all or bool(hits)

    def check(self, where: str) -> None:
        if self._missed:
            raise DatasetError(
                f"{where}: no key is or matches {min(self._missed)!r}; `streamshard ls` lists them"
            )


class _Folder:
    """Writes files below a folder and nowhere else, whatever their names and whatever is there."""

    def __init__(self, root: Path, *, overwrite: bool) -> None:
        self._root, self._overwrite = root, overwrite
        self._real = os.path.realpath(root)
        self._hashes = array.array("q")  # of all paths: 8 bytes each
        self._looked_at: set[Path] = set()  # folders that lie inside
        self._made: set[Path] = set()  # and that are there

    def check(self, name: str, where: str) -> None:
        """Refuse a name that can't be written.

        Raises:
            DatasetError: It leads outside.
            UsageError: There is a file of that name.
        """
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DatasetError(
                f"{where}: {name!r} leads out of the folder (absolute, or by ..); not unpacked"
            )
        path = self._root / name
        if path.parent not in self._looked_at:
            self._check_inside(path.parent, name, where)
            self._looked_at.add(path.parent)
        self._hashes.append(hash(str(path)))
        if not self._overwrite and os.path.lexists(path):
            raise UsageError(
                f"{path} is there already; --overwrite (overwrite=True) replaces files"
            )

    def check_twice(self, names: Iterable[str]) -> None:
        """Refuse names of which two are one file, such as `a.txt` and `./a.txt`.

        Args:
            names: All that were checked, again.

        Raises:
            DatasetError: Two are.
        """
        hashes = np.sort(np.frombuffer(self._hashes, np.int64))
        twice = {*hashes[1:][hashes[1:] == hashes[:-1]].tolist()}
        seen: dict[str, str] = {}
        for name in names if twice else ():
            path = str(self._root / name)
            if hash(path) in twice:
                if path in seen:
                    raise DatasetError(
                        f"{seen[path]!r} and {name!r} of the dataset are one file, {path}"
                    )
                seen[path] = name

    def _check_inside(self, folder: Path, name: str, where: str) -> None:
        """Refuse a folder that a link leads out of ours."""
        real = os.path.realpath(folder)
        if os.path.commonpath([real, self._real]) != self._real:
            raise DatasetError(
                f"{where}: {name!r} leads out of the folder, to {real}; it is not unpacked"
            )

    def write(self, name: str, data: bytes, where: str) -> None:
        """Write a file, so that it appears whole."""
        path = self._root / name
        if path.parent not in self._made:
            with translated(str(path.parent)):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._check_inside(path.parent, name, where)
            self._made.add(path.parent)
        temporary = path.with_name(f".{os.getpid()}.tmp")
        try:
            with translated(str(path)), full_disk_named(str(path)):
                # Never through a link that lies there.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
                    file.write(data)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
