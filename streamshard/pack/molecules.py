"""A CSV file with a molecule a row, written as SMILES, by RDKit through PyG's `from_smiles`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from streamshard.errors import PackError, UsageError
from streamshard.pack.files import Files
from streamshard.pack.graph_files import GraphReader
from streamshard.pack.lines import ParseCells, check_columns, csv_rows
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
        for extent, cells in csv_rows(self._rows):
            if header:
                self._rows.add(*extent)
            else:
                header = cells
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
        check_columns(file, self.names, (self.smiles, *self.targets))
        if _SMILES in self.names and _SMILES not in (self.smiles, *self.targets):
            raise UsageError(
                f"{file}: --smiles is {self.smiles!r}, which is kept as 'smiles', and there is "
                "another column of that name; rename it"
            )

    def read(self, row: Row) -> tuple[Data, dict[str, Any]]:
        rest = ParseCells(tuple(self.names))(row.read())
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
