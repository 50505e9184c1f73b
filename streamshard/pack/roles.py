"""Columns to parts: which one is the image, which the label, and what becomes of the others.

the image               its format: jpg, png, webp, …
the label               cls
another image           COLUMN.jpg (or its format)
an array                COLUMN.npy
several images          COLUMN.images.safetensors, their bytes
other bytes             COLUMN.bin
all else                one object in the part json, by column
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from streamshard.errors import PackError, UsageError
from streamshard.pack.encode import KEY
from streamshard.pack.image_loader import Reencode, part_of_bytes
from streamshard.pack.labels import label_problem
from streamshard.pack.sources import Sample

Kind = Literal["image", "images", "array", "bytes", "integer", "text", "value", "refused"]

_LABEL_NAMES = ("label", "class", "cls", "y")
_SUFFIXES = {"array": "npy", "bytes": "bin", "images": "images.safetensors"}


class Column(NamedTuple):
    """One column of a source.

    Attributes:
        name: What it is called.
        kind: What its values are, as `MakeSample` gets them: bytes of an image or any, a list of
            bytes, an array, an integer, a str, what JSON has; or nothing that is read.
        what: Its type as the source calls it; of one that is refused, why.
        suffix: Of an image, where the type tells it.
        is_label: Whether the source says that it is one.
    """

    name: str
    kind: Kind
    what: str
    suffix: str = ""
    is_label: bool = False


@dataclass(frozen=True)
class Roles:
    """What becomes of each column that is packed.

    Attributes:
        columns: Those that are packed.
        image: The one that is the sample's image.
        label: The one that is its label.
    """

    columns: tuple[Column, ...]
    image: Column | None
    label: Column | None

    def parts(self, formats: Mapping[str, str]) -> dict[str, str]:
        """The part of each column that has one of its own.

        Args:
            formats: Of each image's column, its suffix.

        Raises:
            UsageError: Two columns would be one part.
        """
        parts: dict[str, str] = {}
        for column in self.columns:
            if column == self.image:
                parts[column.name] = formats[column.name]
            elif column.kind == "image" or column.kind in _SUFFIXES:
                suffix = formats.get(column.name) or _SUFFIXES[column.kind]
                part = f"{_as_part(column.name)}.{suffix}"
                if part in parts.values():
                    twin = next(name for name in parts if parts[name] == part)
                    raise UsageError(
                        f"columns {twin!r} and {column.name!r} would both be the part {part}; "
                        f"--drop {column.name} leaves one out"
                    )
                parts[column.name] = part
        return parts

    @property
    def names(self) -> set[str]:
        """What the columns are called."""
        return {one.name for one in self.columns}

    @property
    def notes(self) -> list[str]:
        """What to say of columns that may be something else than was thought."""
        loose = [one.name for one in self.columns if one.kind == "bytes"]
        if self.image or not loose:
            return []
        return [f"no image: {', '.join(loose)} became bytes; --image {loose[0]} makes one of it"]

    @property
    def images(self) -> Iterator[Column]:
        """The columns of images, one each."""
        return (one for one in self.columns if one.kind == "image" or one == self.image)


def roles_of(
    where: str,
    columns: Sequence[Column],
    *,
    image: str | None,
    label: str | None,
    drop: Sequence[str],
) -> Roles:
    """Decide.

    Args:
        where: The source, for errors.
        columns: All that there are.
        image: The column that is the image; by default the only one of images, else the one called
            image.
        label: The column that is the label; by default the only one that the source says is one,
            else the only one of integers or text called label, class, cls or y.
        drop: Columns that are left out.

    Raises:
        UsageError: There is no such column, it is of another kind, several might be meant, or one
            is not read.
    """
    for name in (*drop, *filter(None, (image, label))):
        if name not in {one.name for one in columns}:
            raise UsageError(f"{where}: no column {name!r}; it has {listed(columns)}")
    left = tuple(one for one in columns if one.name not in drop)
    for one in left:
        if one.kind == "refused":
            raise UsageError(f"{where}: column {one.name!r}: {one.what}; --drop {one.name}")
    found_image, found_label = _image(where, left, image), _label(where, left, label)
    if found_image and found_image == found_label:
        raise UsageError(f"image and label are one column, {image!r}; two are wanted")
    return Roles(left, found_image, found_label)


def formats_of(
    where: str, roles: Roles, rows: Callable[[], Iterable[Mapping[str, Any]]]
) -> dict[str, str]:
    """The suffix of each image: what the column's type tells, else what the first image is.

    Args:
        where: The source, for errors.
        roles: Of its columns.
        rows: Gives some values of these columns, by name.

    Raises:
        PackError: A column has no image in any of these rows.
    """
    formats = {one.name: one.suffix for one in roles.images}
    unknown = {name for name, suffix in formats.items() if not suffix}
    for values in rows() if unknown else ():
        formats |= {name: part_of_bytes(values[name] or b"") or "" for name in unknown}
        unknown = {name for name in unknown if not formats[name]}
        if not unknown:
            break
    for name in sorted(unknown):
        raise PackError(f"{where}: column {name!r}: no image in it; --drop {name} leaves it out")
    return formats


def _image(where: str, columns: Sequence[Column], name: str | None) -> Column | None:
    if name is not None:
        chosen = _named(where, columns, name)
        if chosen.kind not in ("image", "bytes"):
            raise UsageError(
                f"{where}: column {name!r} is {chosen.what}; an image is bytes (streamshard pack "
                "table takes paths of images)"
            )
        return chosen
    likely = [one for one in columns if one.kind == "image"]
    if len(likely) == 1:
        return likely[0]
    called = [one for one in columns if one.name == "image" and one.kind in ("image", "bytes")]
    if likely and not called:
        raise UsageError(f"{where}: which column is the image? --image says it: {listed(likely)}")
    return called[0] if called else None


def _label(where: str, columns: Sequence[Column], name: str | None) -> Column | None:
    if name is not None:
        chosen = _named(where, columns, name)
        if chosen.kind not in ("integer", "text"):
            raise UsageError(f"{where}: column {name!r} is {chosen.what}; a label is int or text")
        return chosen
    told = [one for one in columns if one.is_label]
    likely = told or [
        one for one in columns if one.name in _LABEL_NAMES and one.kind in ("integer", "text")
    ]
    if len(likely) > 1:
        raise UsageError(f"{where}: which column is the label? --label says it: {listed(likely)}")
    return likely[0] if likely else None


def _named(where: str, columns: Sequence[Column], name: str) -> Column:
    for one in columns:
        if one.name == name:
            return one
    raise UsageError(f"{where}: column {name!r} is wanted and dropped; choose one")


def listed(columns: Iterable[Column]) -> str:
    """Columns with their types, for errors."""
    return ", ".join(f"{one.name} ({one.what})" for one in columns)


def _as_part(column: str) -> str:
    """A column's name as the beginning of a part's.

    >>> _as_part("Depth Map"), _as_part("__x")
    ('depth_map', 'x')
    """
    return re.sub("[^a-z0-9_]+", "_", column.lower()).lstrip("_") or "column"


@dataclass(frozen=True)
class MakeSample:
    """Makes a sample of the values of a row.

    Attributes:
        roles: Of its columns.
        parts: Of the columns that have one of their own.
        reencode: What becomes of the image.
    """

    roles: Roles
    parts: Mapping[str, str]
    reencode: Reencode

    def __call__(self, key: str, values: Mapping[str, Any], label: int | None) -> Sample:
        """The sample.

        Args:
            key: Its key.
            values: By column.
            label: What the label is as a number, where it is text.

        Raises:
            ValueError: A value is missing, no label, or no image where one is wanted.
        """
        sample: Sample = {KEY: key}
        rest = {}
        for column in self.roles.columns:
            value = values[column.name]
            try:
                if column == self.roles.label:
                    sample["cls"] = _checked_label(value, label)
                elif column.name in self.parts:
                    sample |= self._part(column, value)
                else:
                    rest[column.name] = value
            except ValueError as error:
                raise ValueError(f"column {column.name!r}: {error}") from None
        return {**sample, "json": rest} if rest else sample

    def _part(self, column: Column, value: Any) -> dict[str, Any]:
        if value is None:
            raise ValueError("nothing there")
        part = self.parts[column.name]
        if column == self.roles.image:
            return self._image(value, part)
        if column.kind == "image":
            _check_format(value, part, f"--drop {column.name} leaves it out")
        if column.kind == "images":
            width = len(str(len(value)))
            named = {f"{number:0{width}d}": one for number, one in enumerate(value)}
            value = {name: np.frombuffer(bytearray(one), np.uint8) for name, one in named.items()}
        return {part: value}

    def _image(self, data: bytes, part: str) -> dict[str, Any]:
        if self.reencode.format is None:
            _check_format(data, part, "--format jpg (or png, webp, npy) makes them one")
        return self.reencode(data, part)


def _check_format(data: bytes, part: str, remedy: str) -> None:
    found, wanted = part_of_bytes(data), part.rpartition(".")[2]
    if found is None:
        raise ValueError("not an image")
    if found != wanted:
        raise ValueError(f"a {found} where others are {wanted}; {remedy}")


def _checked_label(value: Any, label: int | None) -> int:
    if problem := label_problem(value):
        raise ValueError(problem)
    return int(value) if label is None else label
