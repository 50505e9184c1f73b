"""MosaicML's datasets to shards, without its package."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from streamshard.codec.base import Codec
from streamshard.errors import SampleError
from streamshard.pack.choose import globbed
from streamshard.pack.deliver import deliver
from streamshard.pack.files import GONE, Files, Stamp, absolute, stamp_of
from streamshard.pack.image_loader import ImageFormat, Reencode
from streamshard.pack.job import Summary
from streamshard.pack.labels import Labels
from streamshard.pack.mds_index import INDEX, MdsIndex, read_index, uncompressed
from streamshard.pack.mds_shards import SampleInput, Samples, split_sample, unchecked
from streamshard.pack.mds_values import column_of, decoder_of
from streamshard.pack.options import (
    PackOptions,
    check_names,
    globs_of,
    reachable,
    seed_of,
)
from streamshard.pack.roles import MakeSample, Roles, formats_of, roles_of
from streamshard.pack.sources import Sample
from streamshard.pack.windows import Numbered
from streamshard.store.filesystem import open_store
from streamshard.store.local import LocalStore


class MdsFolder:
    """The samples of a MosaicML dataset.

    Attributes:
        classes: Labels that are text, sorted, or None.
        codecs: None of its own.
        load: Reads a sample.
        notes: What was found.
    """

    place = str

    def __init__(
        self,
        url: str,
        *,
        image: str | None,
        label: str | None,
        drop: Sequence[str],
        seed: int | None,
        reencode: Reencode,
        options: Mapping[str, Any] | None,
    ) -> None:
        """Read the index, and where labels are text, all of these.

        Args:
            url: A folder or URL.
            image: See `roles_of`; so are label and drop.
            label: See `roles_of`.
            drop: See `roles_of`.
            seed: Of the order in which samples are packed; None keeps that of the dataset.
            reencode: What becomes of the image.
            options: For fsspec.

        Raises:
            PackError: It is no such dataset, or pyarrow is wanted and not installed.
            UsageError: There is no such column, several might be meant, or one is not read.
            StoreError: It can't be read.
        """
        self.codecs: Mapping[str, Codec] = {}
        self.classes: Sequence[str] | None = None
        self._store = open_store(url, options)
        self._url, self._seed = url.rstrip("/"), seed
        self._index = uncompressed(read_index(self._store), self._store)
        self._firsts = [0, *itertools.accumulate(shard.samples for shard in self._index.shards)]
        self._labels: Sequence[int] | None = None
        where = f"{self._store.where}/{INDEX}"
        columns = [column_of(name, encoding) for name, encoding, _ in self._index.columns]
        roles = roles_of(where, columns, image=image, label=label, drop=drop)
        read = ReadColumns(self._index.columns)
        formats = formats_of(where, roles, lambda: self._first_images(read, roles))
        if roles.label and roles.label.kind == "text":
            self._number_labels(where, read, roles.label.name)
        self.notes = [*roles.notes, *_not_compared(self._index)]
        self.load = _LoadSample(
            read=read,
            make=MakeSample(roles, roles.parts(formats), reencode),
            width=len(self.inputs().key(0)),
        )

    def inputs(self) -> Numbered[SampleInput]:
        """See `Source`."""
        return Numbered([shard.samples for shard in self._index.shards], self._seed, self._open)

    def _open(self, number: int) -> Samples:
        shard = self._index.shards[number]
        return Samples(self._store, shard, self._firsts[number], self._labels)

    def _first_images(self, read: ReadColumns, roles: Roles) -> Iterator[dict[str, Any]]:
        """The images of the first shard that has some; what can't be read fails when it is due."""
        names = {column.name for column in roles.images}
        first = next(n for n, shard in enumerate(self._index.shards) if shard.samples)
        for given in self._open(first):
            with contextlib.suppress(ValueError):
                yield read(given, names)

    def _number_labels(self, where: str, read: ReadColumns, name: str) -> None:
        labels = Labels(where, as_text=False)
        for number in range(len(self._index.shards)):
            for given in self._open(number):
                label = None
                with contextlib.suppress(ValueError):
                    label = read(given, {name})[name]
                labels.add(label, None)
        self._labels, self.classes = labels.numbers(), labels.classes

    def files(self) -> Files:
        """See `Listed`: index and shards; of remote ones, the index and names."""
        names = [shard.lying.name for shard in self._index.shards]
        stamps = [self._index.stamp, *map(self._stamp_of, names)]
        return Files.of([absolute(f"{self._url}/{name}") for name in (INDEX, *names)], stamps)

    def _stamp_of(self, name: str) -> Stamp:
        if not isinstance(self._store, LocalStore):
            return Stamp(GONE, GONE)
        return stamp_of(str(self._store.path(name)))

    def key(self, given: SampleInput) -> str:
        """See `KeyedSource`."""
        return self.load.key(given)

    @property
    def portable(self) -> bool:
        """See `Source`: only decoding and encoding is worth another process."""
        encodes = any("pil" in encoding for _, encoding, _ in self._index.columns)
        return self.load.make.reencode.transforms or encodes


def _not_compared(index: MdsIndex) -> list[str]:
    kinds = unchecked(index.shards)
    if not kinds:
        return []
    return [f"hashes that hashlib does not know were not compared: {', '.join(sorted(kinds))}"]


@dataclass(frozen=True)
class ReadColumns:
    """Reads columns of a sample.

    Attributes:
        columns: Names, encodings and sizes of all columns, in the order of their bytes.
    """

    columns: tuple[tuple[str, str, int], ...]

    def __call__(self, given: SampleInput, names: Collection[str]) -> dict[str, Any]:
        """The values of some columns.

        Raises:
            ValueError: The sample can't be read, or a value is none.
        """
        try:
            fields = split_sample(given.read(), [size for _, _, size in self.columns])
        except OSError as error:
            raise ValueError(error.strerror) from None
        values = {}
        for (name, encoding, _), field in zip(self.columns, fields, strict=True):
            if name in names:
                try:
                    values[name] = decoder_of(encoding)(field)
                except ValueError as error:
                    raise ValueError(f"column {name!r}: {error}") from None
        return values


@dataclass(frozen=True)
class _LoadSample:
    """Reads a sample.

    Attributes:
        read: Its columns.
        make: Makes it of their values.
        width: Digits of a key.
    """

    read: ReadColumns
    make: MakeSample
    width: int

    def __call__(self, given: SampleInput) -> Sample:
        """The sample.

        Raises:
            SampleError: It can't be read, or packed; the shard and its number there are named.
        """
        try:
            values = self.read(given, self.make.roles.names)
            return self.make(self.key(given), values, given.label)
        except ValueError as error:
            raise SampleError(f"{given}: {error}") from None

    def key(self, given: SampleInput) -> str:
        """The key: the number of the sample."""
        return f"{given.number:0{self.width}d}"


def pack_mds(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    image: str | None = None,
    label: str | None = None,
    drop: Sequence[str] = (),
    shard_size: int | str = "256MB",
    resize: int | None = None,
    max_side: int | None = None,
    format: ImageFormat | None = None,
    quality: int = 90,
    **options: Unpack[PackOptions],
) -> Summary:
    """Pack a dataset of MosaicML streaming (MDS) into shards; its package is not needed.

    The image becomes the part `jpg`, `png` or what its bytes are (`pil` becomes `png`), the label
    `cls`. Of the other columns, images, arrays and bytes become parts called after them
    (`depth.png`, `tokens.npy`, `raw.bin`; several images `frames.images.safetensors`, their bytes),
    and numbers, text and JSON one object in the part `json`. Pickled columns are refused.

    Args:
        source: A local folder or URL with an `index.json`. What is remote or compressed is copied
            to temporary local files, a few at a time; zstd, brotli and snappy take pyarrow
            (`pip install 'streamshard[mds]'`).
        destination: Folder or URL; it must hold nothing yet.
        image: The column that is the image; by default the only one of images, else the one called
            image.
        label: The column that is the label, integers or text, which becomes classes, sorted by
            name; by default the only one called label, class, cls or y.
        drop: Columns that are left out.
        shard_size: Bytes of a shard, a number or such as "256MB" (decimal).
        resize: See `pack_images`; so are max_side, format and quality.
        max_side: See `pack_images`.
        format: See `pack_images`.
        quality: See `pack_images`.
        **options: Those of every pack: `shuffle`, `include`, `map`, `split`, `on_error`, `resume`,
            `workers` and more, see `ss.PackOptions`. Patterns are of keys, the samples' numbers.
            The order is that of the shards, and of the samples of four at a time.

    Returns:
        What was done.

    Raises:
        PackError: There is no such dataset.
        SampleError: A sample can't be packed, or its shard is not what the index says, and
            `on_error` is "raise"; the shard and the sample's number there are named.
        UsageError: A column is not there, or is pickled; the destination is not empty, or an
            argument breaks its rule.
        StoreError: A shard can't be read.
    """
    check_names(options)
    reencode = Reencode(format, resize, max_side, quality)
    folder = MdsFolder(
        reachable(os.fspath(source), options),
        image=image,
        label=label,
        drop=drop,
        seed=seed_of(options),
        reencode=reencode,
        options=options.get("storage_options"),
    )
    return deliver(
        globbed(folder, globs_of(options)),
        destination,
        shard_size=shard_size,
        about={
            "source": absolute(os.fspath(source)),
            "image": image,
            "label": label,
            "drop": list(drop),
            **dataclasses.asdict(reencode),
        },
        **options,
    )
