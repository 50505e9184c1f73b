"""Labels to numbers: text becomes classes, sorted by name; integers stay what they are."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from streamshard.errors import PackError, UsageError
from streamshard.pack.lines import ParseCells, csv_rows
from streamshard.pack.rows import RowFile


class Labels:
    """The labels of the rows of a file, collected one after another; eight bytes a row.

    Attributes:
        classes: Class names by number, or None where labels are integers.
    """

    def __init__(self, where: str, *, as_text: bool) -> None:
        """Begin with none.

        Args:
            where: The file, for errors.
            as_text: Whether all labels come as text, as in CSV: they are integers then if each is
                written as one.
        """
        self.classes: Sequence[str] | None = None
        self._where, self._as_text = where, as_text
        self._names: dict[str, int] = {}  # in the order in which they came
        self._rows = array("q")  # places among the names; -1 where there is no label
        self._first: dict[type, str] = {}  # the first text and the first integer, with its line

    def add(self, value: Any, line: int | None) -> None:
        """Take the label of the next row; what is wrong with it fails when the row is due."""
        if label_problem(value) is not None:
            self._rows.append(-1)
            return
        if type(value) not in self._first:
            self._first[type(value)] = f"{value!r}" + (f" in line {line}" if line else "")
        self._rows.append(self._names.setdefault(str(value), len(self._names)))

    def numbers(self) -> array[int]:
        """The number of each row, once all are there, and 0 where it has no label.

        Raises:
            PackError: Some are text and some integers.
        """
        if len(self._first) > 1:
            raise PackError(
                f"{self._where}: label {self._first[str]} is text, {self._first[int]} an integer; "
                "all are one or the other"
            )
        if self._are_integers():
            values = [int(name) for name in self._names]
        else:
            self.classes = sorted(self._names)
            place = {name: number for number, name in enumerate(self.classes)}
            values = [place[name] for name in self._names]
        values.append(0)  # which -1 leads to
        return array("q", (values[row] for row in self._rows))

    def _are_integers(self) -> bool:
        return int in self._first or (self._as_text and all(map(_is_integer, self._names)))


def label_problem(value: Any) -> str | None:
    """What is wrong with a label, if anything."""
    if value is None or value == "":
        return "no label there"
    if type(value) is int:
        return None if -(2**63) <= value < 2**63 else f"label {value} does not fit 64 bits"
    if not isinstance(value, str):
        return f"label {value!r} is neither text nor an integer"
    return None if _is_utf8(value) else "label is not UTF-8"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_integer(text: str) -> bool:
    """Whether text is an integer as Python writes it, in 64 bits; 007 is a name."""
    digits = text.removeprefix("-")
    short = digits.isascii() and digits.isdigit() and len(digits) < 19
    return short and str(int(text)) == text


class LabelFile(NamedTuple):
    """Labels by path, from a file.

    Attributes:
        name: Of the file.
        numbers: By path.
        classes: Class names by number, or None where labels are integers.
    """

    name: str
    numbers: dict[str, int]
    classes: Sequence[str] | None


def read_labels(url: str) -> LabelFile:
    """Read a file of labels.

    Args:
        url: A `.csv` whose first row names two columns, the path and the label, or a `.json` with
            one object, labels by path; a path or URL.

    Raises:
        PackError: The file is no such thing, has a path twice, or a label that is none.
        UsageError: The file is of another kind.
        StoreError: It can't be read.
    """
    suffix = PurePosixPath(url.lower()).suffix
    if suffix not in (".csv", ".json"):
        raise UsageError(f"--labels {url}: a .csv or a .json is wanted")
    file = RowFile(url)
    labels = Labels(file.name, as_text=suffix == ".csv")
    paths: dict[str, int] = {}
    for line, path, label in _csv_pairs(file) if suffix == ".csv" else _json_pairs(file):
        if path in paths:
            raise PackError(f"{file.name}:{line}: {path} has a label already")
        if problem := label_problem(label):
            where = f"{file.name}:{line}" if line else file.name
            raise PackError(f"{where}: {path}: {problem}")
        paths[path] = len(paths)
        labels.add(label, line)
    numbers = labels.numbers()
    return LabelFile(file.name, dict(zip(paths, numbers, strict=True)), labels.classes)


def _csv_pairs(file: RowFile) -> list[tuple[int | None, str, Any]]:
    pairs: list[tuple[int | None, str, Any]] = []
    parse = None
    for extent, cells in csv_rows(file):
        if parse is None:
            parse = ParseCells(tuple(cells))
            if len(cells) != 2:
                raise PackError(
                    f"{file.name}: {len(cells)} columns; a path and a label are wanted "
                    "(streamshard pack table takes more)"
                )
            continue
        try:
            parse.named(cells)
        except ValueError as error:
            raise PackError(f"{file.name}:{extent.line}: {error}") from None
        pairs.append((extent.line, cells[0], cells[1]))
    return pairs


def _json_pairs(file: RowFile) -> list[tuple[int | None, str, Any]]:
    try:
        value = json.loads(b"".join(file.lines()))
    except (ValueError, RecursionError) as error:
        raise PackError(f"{file.name}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise PackError(
            f"{file.name}: a {type(value).__name__}; one object, path to label, is wanted"
        )
    return [(None, path, label) for path, label in value.items()]
