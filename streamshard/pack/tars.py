"""Tars in the WebDataset convention to shards: cut anew, shuffled, their images encoded anew."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, Unpack

from streamshard.codec.base import Codec
from streamshard.codec.registry import IMAGE_SUFFIXES, part_of
from streamshard.errors import DamagedError, PackError, SampleError
from streamshard.pack.choose import globbed
from streamshard.pack.deliver import deliver
from streamshard.pack.encode import KEY, check_key, escape_key
from streamshard.pack.files import Files, absolute, stamp_of
from streamshard.pack.image_loader import ImageFormat, Keys, Reencode, check_keys
from streamshard.pack.job import Summary
from streamshard.pack.options import (
    PackOptions,
    check_names,
    globs_of,
    reachable,
    seed_of,
)
from streamshard.pack.patterns import READ_ONCE, expand, samples_of, split_pattern
from streamshard.pack.rows import LocalFile, local_file
from streamshard.pack.sources import Sample
from streamshard.pack.windows import mixed, windows
from streamshard.shard.manifest import HEAD, read_manifest
from streamshard.store.base import redact, translated
from streamshard.store.filesystem import open_store


class TarInput(NamedTuple):
    """One sample of a tar: where its parts lie. While it lives, a temporary copy of the tar does.

    Attributes:
        key: What it is packed under.
        name: What it is called in the tar.
        tar: The tar.
        members: Suffix, offset and bytes of each part.
        problem: Why there is no sample, if so.
    """

    key: str
    name: str
    tar: LocalFile
    members: tuple[tuple[str, int, int], ...]
    problem: str | None = None


class Tars:
    """The samples of some tars.

    Attributes:
        classes: Of the dataset, where the tars are one of ours.
        codecs: None of its own.
        load: Reads a sample.
        notes: What was found so far.
    """

    def __init__(
        self,
        pattern: str,
        *,
        keys: Keys,
        seed: int | None,
        reencode: Reencode,
        options: Mapping[str, Any] | None,
    ) -> None:
        """Find the tars; none is opened yet.

        Args:
            pattern: See `expand`.
            keys: See `pack_tars`.
            seed: Of the order in which samples are packed; None keeps that of the names and tars.
            reencode: What becomes of images.
            options: For fsspec.

        Raises:
            PackError: There is none.
            UsageError: The braces are not balanced.
        """
        self.codecs: Mapping[str, Codec] = {}
        self.notes: list[str] = []
        self._tars, self._seed, self._keys = expand(pattern, options), seed, keys
        self._connect = functools.lru_cache(maxsize=4)(
            functools.partial(open_store, options=options)
        )
        self.classes = _classes(pattern, options)
        self.load = _LoadSample(reencode)
        self._files = Files.of(
            [absolute(url) for url in self._tars],
            [stamp_of(url.removeprefix("file://")) for url in self._tars],
        )

    def inputs(self) -> Iterator[TarInput]:
        """See `Source`; how many samples there are only reading the tars tells."""
        escaped = 0
        for numbers, seed in windows(len(self._tars), self._seed):
            window = [list(self._samples(number)) for number in numbers]
            escaped += sum(_is_escaped(given) for tar in window for given in tar)
            yield from mixed(window, seed)
        note = f"{escaped} keys had characters that were escaped as %XX"
        if escaped and self._keys == "path" and note not in self.notes:
            self.notes.append(note)

    def _samples(self, number: int) -> Iterator[TarInput]:
        """The samples of a tar; where it is damaged, those before, and one that tells it."""
        url = self._tars[number]
        tar, whole = LocalFile(redact(url), "", temporary=False), 0
        try:
            tar = local_file(url, self._connect)
            for name, places in _places(tar):
                yield TarInput(self._key(name, number, whole), name, tar, places)
                whole += 1
        except (DamagedError, PackError) as error:
            problem = f"{error}; what comes behind its first {whole} samples is lost"
            yield TarInput("", "", tar, (), problem)

    def _key(self, name: str, tar: int, row: int) -> str:
        if self._keys == "path":
            return _kept(name)
        return f"{tar:0{max(6, len(str(len(self._tars) - 1)))}d}-{row:06d}"

    def files(self) -> Files:
        """See `Listed`; a remote tar has a name only."""
        return self._files

    @staticmethod
    def key(given: TarInput) -> str:
        """See `KeyedSource`."""
        return given.key

    @staticmethod
    def place(given: TarInput) -> str:
        """See `Source`: the tar."""
        return given.tar.name

    @property
    def portable(self) -> bool:
        """See `Source`: only decoding and encoding is worth another process."""
        return self.load.reencode.transforms


def _places(tar: LocalFile) -> Iterator[tuple[str, tuple[tuple[str, int, int], ...]]]:
    """What each sample of a tar is called, and where its parts lie."""
    with translated(tar.name), open(tar.path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        members = samples_of(file, size, tar.name)
        for name, parts in groupby(members, key=lambda found: found[0]):
            yield name, tuple((suffix, at.offset, at.size) for _, suffix, at in parts)


def _is_escaped(given: TarInput) -> bool:
    return not given.name.endswith(given.key)


def _kept(key: str) -> str:
    """A key that every reader keeps: as it is, or what stands in the way as %XX."""
    key = key.removeprefix("./")
    try:
        check_key(key)
    except SampleError:
        return escape_key(key)
    return key


def _classes(pattern: str, options: Mapping[str, Any] | None) -> Sequence[str] | None:
    """The class names of a dataset of ours."""
    folder, _ = split_pattern(pattern, READ_ONCE)
    if "{" in folder:
        return None
    store = open_store(folder, options)
    return read_manifest(store, store.where).classes if store.exists(HEAD) else None


@dataclass(frozen=True)
class _LoadSample:
    """Reads the parts of one sample.

    Attributes:
        reencode: What becomes of images.
    """

    reencode: Reencode

    def __call__(self, given: TarInput) -> Sample:
        """The sample, its parts as the tar has them but for images that are encoded anew.

        Raises:
            SampleError: The tar is damaged or can't be read any more, or an image is not whole.
        """
        if given.problem is not None:
            raise SampleError(given.problem)
        sample: Sample = {KEY: given.key}
        for suffix, data in self._read(given):
            try:
                sample |= self._part(suffix, data)
            except ValueError as error:
                raise SampleError(
                    f"{given.tar.name}: key {given.name}, part {suffix}: {error}"
                ) from None
        return sample

    def _read(self, given: TarInput) -> Iterable[tuple[str, bytes]]:
        parts = []
        try:
            with open(given.tar.path, "rb") as file:
                for suffix, offset, nbytes in given.members:
                    file.seek(offset)
                    parts.append((suffix, file.read(nbytes)))
        except OSError as error:
            raise SampleError(f"{given.tar.name}: {error.strerror}") from None
        return parts

    def _part(self, suffix: str, data: bytes) -> dict[str, Any]:
        """One part: of images only those that are their sample's, not a mask such as `seg.png`."""
        if suffix in IMAGE_SUFFIXES and self.reencode.transforms:
            return self.reencode(data, suffix)
        return {part_of(suffix): data}


def pack_tars(
    pattern: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    shard_size: int | str = "256MB",
    resize: int | None = None,
    max_side: int | None = None,
    format: ImageFormat | None = None,
    quality: int = 90,
    keys: Keys = "path",
    **options: Unpack[PackOptions],
) -> Summary:
    """Pack existing tars in the WebDataset convention into shards.

    Keys and parts stay as they are: a key is the path up to the first dot of the base name, a part
    the rest in lower case. What no reader would keep in a key becomes %XX.

    Args:
        pattern: A folder or URL of tars; one tar; or several by braces and wildcards
            (`data/train-{000..099}.tar`). Tars that are remote or compressed (`.tar.gz`, `.tgz`,
            `.tar.bz2`, `.tar.xz`) are copied to temporary local files, a few at a time.
        destination: Folder or URL; it must hold nothing yet.
        shard_size: Bytes of a shard, a number or such as "256MB" (decimal).
        resize: See `pack_images`; so are max_side, format and quality. Parts such as `jpg` are
            encoded anew, those such as `seg.png` stay as they are.
        max_side: See `pack_images`.
        format: See `pack_images`.
        quality: See `pack_images`.
        keys: "path", as they are, or "number", that of the tar and that of the sample in it, such
            as 000012-000345.
        **options: Those of every pack: `shuffle`, `include`, `map`, `split`, `on_error`, `resume`,
            `workers` and more, see `ss.PackOptions`. Patterns are of keys. The order is that of the
            tars, and of the samples of four of them at a time; without `shuffle` tars come in the
            order of their names, or of the pattern.

    Returns:
        What was done.

    Raises:
        PackError: There is no such tar.
        SampleError: A sample can't be packed, a tar is damaged, or a key comes back later in it,
            and `on_error` is "raise"; the tar is named. With "skip" the samples before the damage
            are packed, but for one that may not be whole.
        UsageError: The destination is not empty, or an argument breaks its rule.
        StoreError: A tar can't be read.
    """
    check_names(options)
    check_keys(keys)
    reencode = Reencode(format, resize, max_side, quality)
    source = Tars(
        reachable(os.fspath(pattern), options),
        keys=keys,
        seed=seed_of(options),
        reencode=reencode,
        options=options.get("storage_options"),
    )
    return deliver(
        globbed(source, globs_of(options)),
        destination,
        shard_size=shard_size,
        about={
            "source": absolute(os.fspath(pattern)),
            **dataclasses.asdict(reencode),
            "keys": keys,
        },
        **options,
    )
