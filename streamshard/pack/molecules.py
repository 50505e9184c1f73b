"""A CSV file with a molecule a row, written as SMILES, by RDKit through PyG's `from_smiles`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from streamshard.errors import PackError, UsageError
from streamshard.pack.files import Files
from streamshard.pack.graph_files import GraphReader
from streamshard.pack.rows import Row, RowFile

if TYPE_CHECKING:
    from torch_geometric.data import Data

_SMILES = "smiles"  # what `from_smiles` calls the string that it was given


class Molecules(GraphReader):
    """The molecules of a CSV file whose first row names the columns.

    Graphs are what `from_smiles` makes of them: `x` int64 (atoms, 9), `edge_attr` int64 (bonds, 3)
    and `edge_index`, each bond in both directions; with targets, `y` float32 (1, targets), an empty
    cell being NaN. The SMILES, as `smiles`, and all other columns are text in the `json` part.
    """

    def __init__(self, url: str, *, smiles: str, targets: Sequence[str]) -> None:
        """Read the file once: where its rows begin.

        Args:
            url: A path or URL; compressed where its last suffix says so.
            smiles: The column of SMILES.
            targets: The columns of `y`, in its order.

        Raises:
            StoreError: The file can't be read.
            PackError: It has no row, or broken quotes; or RDKit is not installed.
            UsageError: There is no such column, or one is there twice.
        """
        _check_rdkit()
        self.notes = []
        self._rows = RowFile(url)
        columns = self._find_rows()
        self._columns = _Columns(columns, smiles, tuple(targets))
        self._columns.check(self._rows.name)

    def _find_rows(self) -> list[str]:
        """Note where each row begins; the names of the columns."""
        header: list[str] = []
        lines = _Lines(self._rows)
        reader = csv.reader(lines, strict=True)
        line, offset = 0, 0
        try:
            for cells in reader:
                if cells and not header:
                    header = cells
                elif cells:
                    self._rows.add(line + 1, offset, lines.offset - offset)
                line, offset = reader.line_num, lines.offset
        except csv.Error as error:
            # Where the quotes are wrong, nothing tells where the next row begins.
            raise PackError(f"{self._rows.name}:{line + 1}: {error}") from None
        if not len(self._rows):
            raise PackError(f"{self._rows.name}: no row in it below the names of the columns")
        return header

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
        return self._columns.read


class _Lines:
    """The lines of a file as text, and how many bytes of it were given so far."""

    def __init__(self, file: RowFile) -> None:
        self._file, self.offset = file, 0

    def __iter__(self) -> Iterator[str]:
        for data in self._file.lines():
            begins = self.offset == 0
            self.offset += len(data)
            # What is no UTF-8 fails when its row is due.
            text = data.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff") if begins else text


@dataclass(frozen=True)
class _Columns:
    """Reads one row.

    Attributes:
        names: Of all columns.
        smiles: Which of them is the molecule.
        targets: Which of them are `y`.
    """

    names: list[str]
    smiles: str
    targets: tuple[str, ...]

    def check(self, file: str) -> None:
        """Refuse columns that are not there or not one.

        Raises:
            UsageError: See above.
        """
        for name in (self.smiles, *self.targets):
            if name not in self.names:
                raise UsageError(f"{file}: no column {name!r}; it has {', '.join(self.names)}")
        for name in self.names:
            if self.names.count(name) > 1:
                raise UsageError(f"{file}: the column {name!r} is there twice; rename one")
        if _SMILES in self.names and _SMILES not in (self.smiles, *self.targets):
            raise UsageError(
                f"{file}: --smiles is {self.smiles!r}, which is kept as 'smiles', and there is "
                "another column of that name; rename it"
            )

    def read(self, row: Row) -> tuple[Data, dict[str, Any]]:
        cells = next(csv.reader([row.read().decode()], strict=True))
        if len(cells) != len(self.names):
            raise ValueError(f"{len(cells)} columns; the first row names {len(self.names)}")
        rest = dict(zip(self.names, cells, strict=True))
        graph = _molecule(rest.pop(self.smiles))
        if self.targets:
            values = [_number(name, rest.pop(name)) for name in self.targets]
            graph.y = torch.tensor([values], dtype=torch.float32)
        return graph, rest


def _molecule(smiles: str) -> Data:
    """The graph of a molecule.

    Raises:
        ValueError: RDKit can't read it, or PyG has no number for something in it.
    """
    from torch_geometric.utils import from_smiles

    try:
        graph = from_smiles(smiles)  # which also ends RDKit's lines on standard error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"SMILES {smiles!r}: {error}") from None
    if graph.num_nodes == 0:  # what `from_smiles` makes of text that is no molecule
        raise ValueError(f"SMILES {smiles!r} can't be read by RDKit")
    return graph


def _number(column: str, cell: str) -> float:
    try:
        return float(cell) if cell.strip() else float("nan")
    except ValueError:
        raise ValueError(f"column {column!r} holds {cell!r}, not a number") from None


def _check_rdkit() -> None:
    try:
        import rdkit  # noqa: F401
    except ImportError:
        raise PackError(
            "reading SMILES takes RDKit, which is not installed: pip install 'streamshard[smiles]'"
        ) from None
