"""A table that says where images lie and what they are, to shards: CSV, JSONL or Parquet."""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

from streamshard.codec.base import Codec
from streamshard.errors import PackError, SampleError, UsageError
from streamshard.pack.choose import Globs
from streamshard.pack.deliver import deliver
from streamshard.pack.files import Files, absolute
from streamshard.pack.image_loader import (
    ImageFormat,
    ImageInput,
    ImageLoader,
    Keys,
    Reencode,
    check_formats,
    check_keys,
    is_image,
    key_in_table,
    part_of_image,
)
from streamshard.pack.job import Summary
from streamshard.pack.labels import Labels, label_problem
from streamshard.pack.lines import (
    Extent,
    ParseCells,
    check_columns,
    csv_rows,
    jsonl_rows,
    parse_object,
)
from streamshard.pack.options import (
    PackOptions,
    check_names,
    globs_of,
    reachable,
    seed_of,
)
from streamshard.pack.parquet_table import as_jsonl
from streamshard.pack.rows import Row, RowFile, kind_of
from streamshard.pack.sources import Sample, pack_order
from streamshard.store.base import HAS_SCHEME, redact

Cells = dict[str, Any]  # of one row, by column
_FOUND = Iterator[tuple[Extent, Cells | None]]  # None: what is wrong with it fails when it is due


class TableInput(NamedTuple):
    """One row, and what the whole table makes of its label."""

    number: int
    row: Row
    label: int | None


class Table:
    """The images that a table names.

    Attributes:
        classes: Labels that are text, sorted, or None.
        codecs: None of its own.
        load: Reads a row and its image.
        notes: What was found.
    """

    def __init__(
        self,
        url: str,
        *,
        image: str,
        label: str | None,
        keys: Keys,
        seed: int | None,
        reencode: Reencode,
        globs: Globs,
    ) -> None:
        """Read the table once: where its rows lie, and which labels there are.

        Args:
            url: A path or URL; compressed where its last suffix says so.
            image: The column of paths or URLs; relative ones begin where the table lies.
            label: The column of labels, or None.
            keys: "path" for the path as the table has it, without suffix, "number" for the number
                of the row.
            seed: Of the order in which samples are packed; None keeps that of the table.
            reencode: What becomes of the images.
            globs: Which paths are taken; rows of the others are as though they were not there.

        Raises:
            PackError: It has no row, none is left, or broken quotes; labels are text and integers;
                several formats and no `format`; or pyarrow is not installed.
            UsageError: It is no table, or has no such column, or twice.
            StoreError: It can't be read.
        """
        if label == image:
            raise UsageError(f"image and label are one column, {image!r}; two are wanted")
        self.codecs: Mapping[str, Codec] = {}
        self.notes: list[str] = []
        kind = kind_of(url)
        self._rows = RowFile(as_jsonl(url) if kind == ".parquet" else url)
        self._image, self._label, self._globs = image, label, globs
        self._labels = Labels(self._rows.name, as_text=kind == ".csv")
        self._first: dict[str, str] = {}  # an image of each part
        found, parse, names = _reader(kind, self._rows)
        left_out = sum(not self._take(extent, cells) for extent, cells in found)
        self._check(names(), left_out)
        check_formats(self._rows.name, self._first, reencode)
        self.notes += globs.note(left_out)
        self._numbers = self._labels.numbers() if label else None
        self.classes = self._labels.classes
        self._order = pack_order(len(self._rows), seed)
        self.load = _LoadRow(
            parse=parse,
            image=image,
            label=label,
            has_rest=bool(set(names()) - {image, label}),
            folder="" if "/" not in url else url.rpartition("/")[0] or "/",
            width=max(6, len(str(len(self._rows) - 1))) if keys == "number" else 0,
            loader=ImageLoader(reencode),
        )

    def _take(self, extent: Extent, cells: Cells | None) -> bool:
        """Take note of a row unless its path is left out."""
        path = None if cells is None else cells.get(self._image)
        if isinstance(path, str) and path:
            if not self._globs.accept(path, key_in_table(path)):
                return False
            if is_image(path):
                self._first.setdefault(part_of_image(path), path)
        self._rows.add(*extent)
        if self._label is not None:
            self._labels.add((cells or {}).get(self._label), extent.line)
        return True

    def _check(self, names: Sequence[str], left_out: int) -> None:
        file = self._rows.name
        if names:
            check_columns(file, names, [name for name in (self._image, self._label) if name])
        if left_out and not len(self._rows):
            raise PackError(f"{file}: none of {left_out} rows is left by --include and --exclude")
        if not len(self._rows):
            raise PackError(f"{file}: no row in it")

    def inputs(self) -> Sequence[TableInput]:
        """See `Source`."""
        return _Rows(self._rows, self._numbers, self._order)

    def files(self) -> Files:
        """See `Listed`: the table; images may lie anywhere."""
        return self._rows.files()

    def key(self, given: TableInput) -> str:
        """See `KeyedSource`; of a row that can't be read, which fails when it is due, nothing."""
        try:
            return self.load.key(given.number, self.load.read(given.row))
        except SampleError:
            return ""

    @staticmethod
    def place(given: TableInput) -> str:
        """See `Source`: file and line."""
        return str(given.row)

    @property
    def portable(self) -> bool:
        """See `Source`: only decoding and encoding is worth another process."""
        return self.load.loader.reencode.transforms


class _Rows(Sequence[TableInput]):
    """The rows in the order in which they are packed."""

    def __init__(self, rows: RowFile, labels: Sequence[int] | None, order: Sequence[int]) -> None:
        self._rows, self._labels, self._order = rows, labels, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: Any) -> Any:
        number = self._order[place]
        return TableInput(
            number, self._rows[number], None if self._labels is None else self._labels[number]
        )


def _reader(
    kind: str, rows: RowFile
) -> tuple[_FOUND, Callable[[bytes], Cells], Callable[[], Sequence[str]]]:
    """The rows of a table, how one is parsed alone, and after the last the names of all columns."""
    if kind == ".csv":
        lines = csv_rows(rows)
        _, header = next(lines, (None, []))
        parse = ParseCells(tuple(header))
        return (
            ((extent, _or_none(parse.named, cells)) for extent, cells in lines),
            parse,
            lambda: header,
        )
    if kind not in (".jsonl", ".ndjson", ".parquet"):
        raise UsageError(f"{rows.name}: no table; a .csv, .jsonl or .parquet is wanted")
    seen: dict[str, None] = {}

    def found() -> _FOUND:
        for extent, line in jsonl_rows(rows):
            cells = _or_none(parse_object, line)
            seen.update(dict.fromkeys(cells or ()))
            yield extent, cells

    return found(), parse_object, lambda: list(seen)


def _or_none(parse: Callable[[Any], Cells], given: Any) -> Cells | None:
    try:
        return parse(given)
    except ValueError:
        return None


@dataclass(frozen=True)
class _LoadRow:
    """Reads a row and the image that it names.

    Attributes:
        parse: Gives the cells of a row's bytes.
        image: The column of paths.
        label: The column of labels.
        has_rest: Whether there are further columns, which become `json`.
        folder: Where the table lies.
        width: Digits of keys that are numbers; 0 for keys that are paths.
        loader: Reads an image.
    """

    parse: Callable[[bytes], Cells]
    image: str
    label: str | None
    has_rest: bool
    folder: str
    width: int
    loader: ImageLoader

    def __call__(self, given: TableInput) -> Sample:
        """The sample of a row.

        Raises:
            SampleError: The row or its image can't be read; file and line are named.
        """
        cells = self.read(given.row)
        path = cells.pop(self.image)
        if self.label is not None and (problem := label_problem(cells.pop(self.label, None))):
            raise SampleError(f"{given.row}: column {self.label!r}: {problem}")
        image = ImageInput(
            self.key(given.number, {self.image: path}),
            self._find(path),
            part_of_image(path),
            given.label,
        )
        try:
            sample = self.loader(image)
        except SampleError as error:
            raise SampleError(f"{given.row}: {error}") from None
        return {**sample, "json": cells} if self.has_rest else sample

    def read(self, row: Row) -> Cells:
        """The cells of a row, which has a path.

        Raises:
            SampleError: It can't be read, or has none.
        """
        try:
            cells = self.parse(row.read())
        except (OSError, ValueError) as error:
            raise SampleError(f"{row}: {error}") from None
        path = cells.get(self.image)
        if not isinstance(path, str) or not path:
            what = "no path there" if path in (None, "") else f"{path!r} is not a path"
            raise SampleError(f"{row}: column {self.image!r}: {what}")
        if not self.loader.reencode.format and not is_image(path):
            raise SampleError(f"{row}: {redact(path)} has no suffix of an image; --format says one")
        return cells

    def key(self, number: int, cells: Cells) -> str:
        """The key of a row."""
        return f"{number:0{self.width}d}" if self.width else key_in_table(cells[self.image])

    def _find(self, path: str) -> str:
        return (
            path if HAS_SCHEME.match(path) or not self.folder else posixpath.join(self.folder, path)
        )


def pack_table(
    table: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    image: str,
    label: str | None = None,
    shard_size: int | str = "256MB",
    resize: int | None = None,
    max_side: int | None = None,
    format: ImageFormat | None = None,
    quality: int = 90,
    keys: Keys = "path",
    **options: Unpack[PackOptions],
) -> Summary:
    """Pack the images that a table names into shards.

    Args:
        table: A `.csv` whose first row names the columns, a `.jsonl` or a `.parquet`
            (`pip install 'streamshard[parquet]'`); a path or URL, text also compressed. Parts: the
            images' suffix, `cls` where there is a label, and `json` with all other columns.
        destination: Folder or URL; it must hold nothing yet.
        image: The column of paths; relative ones begin where the table lies.
        label: The column of labels: text becomes classes, sorted by name; integers are `cls` as
            they are. In CSV they are integers if each is written as one.
        shard_size: Bytes of a shard, a number or such as "256MB" (decimal).
        resize: See `pack_images`; so are max_side, format and quality.
        max_side: See `pack_images`.
        format: See `pack_images`.
        quality: See `pack_images`.
        keys: "path", as the table has it, or "number", that of the row.
        **options: Those of every pack: `shuffle`, `include`, `map`, `split`, `on_error`, `resume`,
            `workers` and more, see `ss.PackOptions`. Patterns are of paths as the table has them;
            rows that they leave out are as though they were not there.

    Returns:
        What was done.

    Raises:
        PackError: The table can't be packed as asked.
        SampleError: A row or its image can't be read, and `on_error` is "raise"; file and line are
            named.
        UsageError: There is no such column, the destination is not empty, or an argument breaks
            its rule.
        StoreError: The table can't be read.
    """
    check_names(options)
    check_keys(keys)
    reencode = Reencode(format, resize, max_side, quality)
    source = Table(
        reachable(os.fspath(table), options),
        image=image,
        label=label,
        keys=keys,
        seed=seed_of(options),
        reencode=reencode,
        globs=globs_of(options),
    )
    return deliver(
        source,
        destination,
        shard_size=shard_size,
        about={
            "source": absolute(os.fspath(table)),
            "image": image,
            "label": label,
            **dataclasses.asdict(reencode),
            "keys": keys,
        },
        **options,
    )
