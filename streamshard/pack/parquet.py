"""Parquet files that hold images to shards, as Hugging Face's `datasets` writes them and others."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from streamshard.codec.base import Codec
from streamshard.errors import PackError, SampleError, UsageError
from streamshard.pack.choose import globbed
from streamshard.pack.deliver import deliver
from streamshard.pack.files import Files, absolute, stamp_of
from streamshard.pack.image_loader import (
    ImageFormat,
    Keys,
    Reencode,
    check_keys,
    key_in_table,
)
from streamshard.pack.job import Summary
from streamshard.pack.labels import Labels
from streamshard.pack.options import (
    PackOptions,
    check_names,
    globs_of,
    reachable,
    seed_of,
)
from streamshard.pack.parquet_columns import class_names, columns_of, path_of, read_value, value_of
from streamshard.pack.parquet_files import ParquetFiles
from streamshard.pack.parquet_rows import Group, RowInput
from streamshard.pack.patterns import expand
from streamshard.pack.roles import Column, MakeSample, Roles, formats_of, listed, roles_of
from streamshard.pack.sources import Sample
from streamshard.pack.windows import Numbered, Windows
from streamshard.store.base import redact

ENDINGS = (".parquet",)


class ParquetImages:
    """The rows of Parquet files, each with an image.

    Attributes:
        classes: Those that the files name, or labels that are text, sorted, or None.
        codecs: None of its own.
        load: Reads a row.
        notes: What was found.
    """

    place = str

    def __init__(
        self,
        pattern: str,
        *,
        image: str | None,
        label: str | None,
        drop: Sequence[str],
        keys: Keys,
        seed: int | None,
        reencode: Reencode,
        options: Mapping[str, Any] | None,
    ) -> None:
        """Read the ends of the files, and where labels are text, all of these.

        Args:
            pattern: See `pack_parquet`.
            image: See `roles_of`; so are label and drop.
            label: See `roles_of`.
            drop: See `roles_of`.
            keys: See `pack_parquet`.
            seed: Of the order in which samples are packed; None keeps that of the rows.
            reencode: What becomes of the images.
            options: For fsspec.

        Raises:
            PackError: There is no such file, no row in them, a file is no Parquet or has other
                columns than the first; or pyarrow is not installed.
            UsageError: There is no such column, several might be meant, or one is not read.
            StoreError: A file can't be read.
        """
        self.codecs: Mapping[str, Codec] = {}
        self.notes: list[str] = []
        self._urls, self._seed, self._keys = expand(pattern, options, ENDINGS), seed, keys
        self._files = ParquetFiles(self._urls, options)
        self._firsts = [0, *itertools.accumulate(group.rows for group in self._files.groups)]
        where = redact(pattern)
        if not self._firsts[-1]:
            raise PackError(f"{where}: no row in it")
        columns = columns_of(self._files.schema, self._files.features)
        roles = roles_of(where, columns, image=image, label=label, drop=drop)
        if roles.image is None:
            raise UsageError(f"{where}: which column holds the images? --image: {listed(columns)}")
        formats = formats_of(where, roles, lambda: self._first_images(roles))
        self._labels, self.classes = self._find_labels(where, roles.label)
        self._columns = [column.name for column in roles.columns]
        self.load = _LoadRow(
            make=MakeSample(roles, roles.parts(formats), reencode),
            width=len(Numbered([self._firsts[-1]], None, self._open).key(0)),
            image=roles.image.name if keys == "path" else None,
        )

    def _first_images(self, roles: Roles) -> Iterator[dict[str, Any]]:
        """The images of the first row group with rows; what can't be read fails when it is due."""
        images = {column.name: column for column in roles.images}
        first = next(group for group in self._files.groups if group.rows)
        with contextlib.suppress(ValueError):
            for batch in self._files.batches(first, list(images)):
                for row in range(len(batch)):
                    with contextlib.suppress(ValueError):
                        yield {
                            name: value_of(batch.column(name)[row], column)
                            for name, column in images.items()
                        }

    def _find_labels(
        self, where: str, column: Column | None
    ) -> tuple[Sequence[int] | None, Sequence[str] | None]:
        """The labels as numbers where they are text, and the classes."""
        if column is None or column.kind != "text":
            return None, column and class_names(self._files.features, column.name)
        labels = Labels(where, as_text=False)
        for group in self._files.groups:
            left = group.rows
            with contextlib.suppress(ValueError):
                for batch in self._files.batches(group, [column.name]):
                    for value in batch.column(0).to_pylist():
                        labels.add(value, None)
                    left -= len(batch)
            for _ in range(left):  # what can't be read fails when it is due
                labels.add(None, None)
        return labels.numbers(), labels.classes

    def inputs(self) -> Windows[RowInput]:
        """See `Source`."""
        kind = Numbered if self._keys == "number" else Windows
        return kind([group.rows for group in self._files.groups], self._seed, self._open)

    def _open(self, number: int) -> Group:
        rows = self._files.copied(number, self._columns)
        return Group(rows, self._firsts[number], self._labels)

    def files(self) -> Files:
        """See `Listed`; a remote file has a name only."""
        paths = [url.removeprefix("file://") for url in self._urls]
        return Files.of([absolute(url) for url in self._urls], map(stamp_of, paths))

    def key(self, given: RowInput) -> str:
        """See `KeyedSource`; of a row that can't be read, which fails when it is due, nothing."""
        try:
            return self.load.key(given)
        except ValueError:
            return ""

    @property
    def portable(self) -> bool:
        """See `Source`: only decoding and encoding is worth another process."""
        return self.load.make.reencode.transforms


@dataclass(frozen=True)
class _LoadRow:
    """Reads a row.

    Attributes:
        make: Makes a sample of its values.
        width: Digits of a key that is a number.
        image: The column whose path is the key; None for numbers.
    """

    make: MakeSample
    width: int
    image: str | None

    def __call__(self, given: RowInput) -> Sample:
        """The sample of a row.

        Raises:
            SampleError: It can't be read, or packed; the file and the row's number are named.
        """
        try:
            scalars = given.rows.read(given.row)
            values = {one.name: read_value(scalars, one) for one in self.make.roles.columns}
            return self.make(self.key(given), values, given.label)
        except OSError as error:
            raise SampleError(f"{given}: its temporary copy: {error.strerror or error}") from None
        except ValueError as error:
            raise SampleError(f"{given}: {error}") from None

    def key(self, given: RowInput) -> str:
        """The key of a row.

        Raises:
            ValueError: It has no path, or can't be read.
        """
        if self.image is None:
            return f"{given.number:0{self.width}d}"
        return key_in_table(path_of(given.rows.read(given.row)[self.image]))


def pack_parquet(
    files: str | os.PathLike[str],
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
    keys: Keys = "number",
    **options: Unpack[PackOptions],
) -> Summary:
    """Pack Parquet files that hold images, such as those of Hugging Face's `datasets`, into shards.

    The image becomes the part `jpg`, `png` or what its bytes are, the label `cls`, with the classes
    that a `ClassLabel` names. Of the other columns, images, bytes and lists of numbers become parts
    called after them (`depth.png`, `raw.bin`, `embedding.npy`), all else one object in the part
    `json`: dates as ISO 8601 has them, decimals as text.

    Args:
        files: A folder or URL of `.parquet` files; one file; or several by braces and wildcards
            (`data/train-*.parquet`). Takes pyarrow (`pip install 'streamshard[parquet]'`).
        destination: Folder or URL; it must hold nothing yet.
        image: The column of images: bytes, or a struct of bytes and path; by default the only one
            that `datasets` has for an Image, else the one called image.
        label: The column that is the label, integers or text, which becomes classes, sorted by
            name; by default the only `ClassLabel`, else the only one called label, class, cls or y.
        drop: Columns that are left out.
        shard_size: Bytes of a shard, a number or such as "256MB" (decimal).
        resize: See `pack_images`; so are max_side, format and quality.
        max_side: See `pack_images`.
        format: See `pack_images`.
        quality: See `pack_images`.
        keys: "number", that of the row, or "path", the one beside the image's bytes.
        **options: Those of every pack: `shuffle`, `include`, `map`, `split`, `on_error`, `resume`,
            `workers` and more, see `ss.PackOptions`. Patterns are of keys. The order is that of the
            row groups, and of the rows of four at a time, which lie in temporary files meanwhile.

    Returns:
        What was done.

    Raises:
        PackError: The files can't be packed as asked.
        SampleError: A row can't be packed, or its row group is damaged, and `on_error` is "raise";
            the file and the row's number are named.
        UsageError: A column is not there, the destination is not empty, or an argument breaks its
            rule.
        StoreError: A file can't be read.
    """
    check_names(options)
    check_keys(keys)
    reencode = Reencode(format, resize, max_side, quality)
    source = ParquetImages(
        reachable(os.fspath(files), options),
        image=image,
        label=label,
        drop=drop,
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
            "source": absolute(os.fspath(files)),
            "image": image,
            "label": label,
            "drop": list(drop),
            **dataclasses.asdict(reencode),
            "keys": keys,
        },
        **options,
    )
