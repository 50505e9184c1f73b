"""JSONL with one graph a line: `{"x": [[0.5], [1.5]], "edge_index": [[0, 1], [1, 0]], "y": 3}`.

What a field becomes is decided once for the file, from all of its lines. A field that is a number,
true, false, or lists of these in any line is a tensor in every line:

- int64 where its name holds `index`, and for `face`: numbers of nodes, as PyG's names say;
- bool where every value of every line is true or false;
- int64 where every number of every line is written as an integer;
- float32 otherwise.

A single number becomes a tensor of one; an empty list has the width that the other lines have.
`num_nodes` is the number of nodes. Every other field goes into the `json` part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from streamshard.codec.pyg import check_name
from streamshard.errors import PackError
from streamshard.pack.files import Files
from streamshard.pack.graph_files import GraphReader
from streamshard.pack.lines import jsonl_rows, parse_object
from streamshard.pack.rows import Row, RowFile

if TYPE_CHECKING:
    from torch_geometric.data import Data

_NODES = "num_nodes"
_NUMBERS = {bool, int, float}


@dataclass
class _Seen:
    """What the lines of a file have in one field.

    Attributes:
        types: Of the numbers.
        tail: Lengths of the axes after the first, in the first line that has numbers there.
    """

    types: set[type] = field(default_factory=set)
    tail: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Form:
    """What a field is in every line."""

    dtype: torch.dtype
    tail: tuple[int, ...]


class JsonlGraphs(GraphReader):
    """The graphs of a JSONL file."""

    def __init__(self, url: str) -> None:
        """Read the file once: where its lines begin, and what their fields are.

        Args:
            url: A path or URL; compressed where its last suffix says so.

        Raises:
            StoreError: It can't be read.
            PackError: It has no line.
        """
        self.notes = []
        self._rows = RowFile(url)
        seen: dict[str, _Seen] = {}
        for extent, line in jsonl_rows(self._rows):
            self._rows.add(*extent)
            _look_at(line, seen)
        if not len(self._rows):
            raise PackError(f"{self._rows.name}: no line in it; one JSON object a line is wanted")
        self._forms = {name: _form(name, known) for name, known in seen.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def files(self, seed: int | None) -> Files:
        """See `GraphReader`."""
        return self._rows.files()

    def __getitem__(self, number: int) -> Row:
        """See `GraphReader`."""
        return self._rows[number]

    @property
    def read(self) -> Any:
        """See `GraphReader`."""
        return _ReadLine(self._forms)


@dataclass(frozen=True)
class _ReadLine:
    """Reads the graph of one line."""

    forms: Mapping[str, _Form]

    def __call__(self, row: Row) -> tuple[Data, dict[str, Any]]:
        from torch_geometric.data import Data

        fields = parse_object(row.read())
        graph, rest = Data(), {}
        for name, value in fields.items():
            if name == _NODES:
                graph.num_nodes = _count(value)
            elif name in self.forms:
                check_name(name)
                graph[name] = _tensor(name, value, self.forms[name])
            else:
                rest[name] = value
        return graph, rest


def _look_at(line: bytes, seen: dict[str, _Seen]) -> None:
    """Add a line's fields to what was seen; a line that is no object fails when it is due."""
    try:
        fields = parse_object(line)
    except ValueError:
        return
    for name, value in fields.items():
        types = _types(value)
        if name != _NODES and types and types <= _NUMBERS:
            known = seen.setdefault(name, _Seen(tail=_tail(value)))
            known.types |= types


def _form(name: str, seen: _Seen) -> _Form:
    if _is_index(name):
        return _Form(torch.int64, (0,) if name == "edge_index" else seen.tail)
    if seen.types == {bool}:
        return _Form(torch.bool, seen.tail)
    return _Form(torch.float32 if float in seen.types else torch.int64, seen.tail)


def _is_index(name: str) -> bool:
    return "index" in name or name == "face"


def _types(value: Any) -> set[type]:
    """The types of what lies in a value's nested lists."""
    found: set[type] = set()
    level = [value]
    while level:
        types = set(map(type, level))
        found |= types - {list}
        nested = (inner for inner in level if type(inner) is list)
        level = list(chain.from_iterable(nested)) if list in types else []
    return found


def _tail(value: Any) -> tuple[int, ...]:
    """The lengths of a value's nested lists after the first."""
    lengths = []
    while isinstance(value, list):
        lengths.append(len(value))
        value = value[0] if value else None
    return tuple(lengths[1:])


def _count(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{_NODES} is {value!r}, not an integer")
    return value


def _tensor(name: str, value: Any, form: _Form) -> torch.Tensor:
    types = _types(value)
    if not types <= _NUMBERS:
        other = min(kind.__name__ for kind in types - _NUMBERS)
        raise ValueError(f"field {name!r} holds a {other} here, and numbers in other lines")
    if form.dtype == torch.int64 and float in types:
        raise ValueError(f"field {name!r} holds a fraction; an index is written as an integer")
    if value == []:
        return torch.zeros((2, 0) if name == "edge_index" else (0, *form.tail), dtype=form.dtype)
    try:
        tensor = torch.tensor(value, dtype=form.dtype)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"field {name!r}: {error}") from None
    return tensor.reshape(1) if tensor.dim() == 0 else tensor
