from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.utils import from_smiles

import streamshard as ss
from streamshard.errors import NotFoundError, PackError, SampleError, UsageError
from tests.pack.sources import files_of
from tests.pack.test_graphs import assert_same, numbered

SMILES = ["CCO", "C", "c1ccccc1", "[Na+].[Cl-]", "C/C=C/C", "CC(=O)Oc1ccccc1C(=O)O"]
COLUMNS = ["id", "smiles", "logp", "x"]


def rows() -> list[list[str]]:
    return [[f"M{n}", text, f"{n / 4}", f"note {n}"] for n, text in enumerate(SMILES)]


def write(path: Path, *lines: Sequence[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *lines])
    return path


def packed(path: Path, **options: Any) -> dict[int, dict[str, Any]]:
    options = {"smiles": "smiles", "targets": ["logp"], **options}
    ss.pack_graphs(path, path.parent / "dst", overwrite=True, **options)
    return numbered(path.parent / "dst")


def test_molecules_are_what_pyg_makes_of_them(tmp_path: Path) -> None:
    found = packed(write(tmp_path / "a.csv", *rows()))
    assert sorted(found) == list(range(6))
    for number, text in enumerate(SMILES):
        wanted = from_smiles(text)
        wanted.y = torch.tensor([[number / 4]])
        assert_same(found[number]["graph"], wanted)
        assert found[number]["json"] == {"smiles": text, "id": f"M{number}", "x": f"note {number}"}
    assert found[1]["graph"].edge_index.shape == (2, 0), "methane has no bond"


def test_a_batch_of_them_is_that_of_pyg(tmp_path: Path) -> None:
    packed(write(tmp_path / "a.csv", *rows()), shuffle=False)
    dataset = ss.ShardDataset(str(tmp_path / "dst"), batch_size=6, parts="graph")
    batch = next(iter(ss.StreamLoader(dataset)))
    assert (batch.x.dtype, batch.x.shape[1]) == (torch.int64, 9)
    assert (batch.edge_attr.dtype, batch.edge_attr.shape[1]) == (torch.int64, 3)
    assert torch.equal(batch.y, torch.arange(6)[:, None] / 4)


def test_targets_are_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    lines = [[str(n), text, str(n / 4), str(n * 10)] for n, text in enumerate(SMILES)]
    found = packed(write(tmp_path / "a.csv", *lines), targets=["x", "logp"])
    assert found[3]["graph"].y.tolist() == [[30.0, 0.75]]
    assert found[3]["graph"].y.dtype == torch.float32
    assert found[3]["json"] == {"smiles": SMILES[3], "id": "3"}


def test_without_targets_there_is_no_y(tmp_path: Path) -> None:
    found = packed(write(tmp_path / "a.csv", *rows()), targets=())
    assert "y" not in found[0]["graph"]
    assert found[0]["json"]["logp"] == "0.0"


def test_the_molecule_may_be_in_a_column_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("structure,name\nCCO,ethanol\n")
    found = packed(tmp_path / "a.csv", smiles="structure", targets=())
    assert found[0]["json"] == {"smiles": "CCO", "name": "ethanol"}


def test_quoted_cells_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    notes = ["a,b", 'say "no"', "two\nlines", "three\r\n\r\nlines", "\u2028 and \x0b", "ä"]
    lines = [[f"M{n}", SMILES[n], "0", note] for n, note in enumerate(notes)]
    found = packed(write(tmp_path / "a.csv", *lines), seed=1)
    assert [found[number]["json"]["x"] for number in range(6)] == notes
    lines.append(["M6", "not a molecule", "0", ""])
    with pytest.raises(SampleError, match=r"a\.csv:11: SMILES 'not a molecule'"):
        packed(write(tmp_path / "a.csv", *lines))


def test_byte_order_mark_blank_lines_and_any_line_ends_are_read_over(tmp_path: Path) -> None:
    text = "\ufeffsmiles,logp\r\n\r\nCCO,1\r\n\n\nC,2"
    (tmp_path / "a.csv").write_bytes(text.encode())
    found = packed(tmp_path / "a.csv")
    assert [found[number]["graph"].y.item() for number in range(2)] == [1, 2]


def test_a_compressed_file_gives_the_same_bytes_and_so_do_workers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", *rows() * 20)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    options: dict[str, Any] = {"smiles": "smiles", "targets": ["logp"]}
    ss.pack_graphs(path, tmp_path / "plain", workers=0, **options)
    ss.pack_graphs(f"{path}.gz", tmp_path / "gz", workers=2, **options)
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "gz")


def test_an_empty_target_is_refused_or_nan_where_that_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["M0", "CCO", "", ""], ["M1", "C", "2", ""])
    with pytest.raises(SampleError, match=r"a\.csv:2: .*field 'y' holds NaN.*--allow-nan"):
        packed(path)
    found = packed(path, allow_nan=True)
    assert found[0]["graph"].y.isnan().all()
    assert found[1]["graph"].y.item() == 2


BAD = {
    "no-molecule": (["M", "C1CC", "0", ""], "SMILES 'C1CC' can't be read by RDKit"),
    "valence": (["M", "C(C)(C)(C)(C)(C)C", "0", ""], "can't be read by RDKit"),
    "empty": (["M", "", "0", ""], "SMILES '' can't be read by RDKit"),
    "unknown-to-pyg": (["M", "[Fe+9]", "0", ""], r"SMILES '\[Fe\+9\]': 9 is not in list"),
    "target": (["M", "CCO", "high", ""], "column 'logp' holds 'high', not a number"),
    "few-columns": (["M", "CCO"], "2 columns; the first row names 4"),
    "many-columns": (["M", "CCO", "0", "", ""], "5 columns; the first row names 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_file_and_line_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    bad, reason = BAD[name]
    path = write(tmp_path / "a.csv", *rows(), bad)
    with pytest.raises(SampleError, match=rf"{tmp_path}/a\.csv:8: .*{reason}"):
        packed(path)
    options: dict[str, Any] = {"smiles": "smiles", "targets": ["logp"], "on_error": "skip"}
    summary = ss.pack_graphs(path, tmp_path / "skip", **options)
    assert (summary.samples, len(summary.skipped)) == (6, 1)
    assert "a.csv:8: " in summary.skipped[0]
    assert capfd.readouterr() == ("", ""), "RDKit writes there by itself"


def test_a_row_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"smiles,logp\nCCO,1\nC\xff,2\n")
    with pytest.raises(SampleError, match=r"a\.csv:3: 'utf-8' codec can't decode"):
        packed(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("a,b\nC,1\n", {}, "a.csv: no column 'smiles'; it has a, b"),
        ("smiles,b\nC,1\n", {}, "a.csv: no column 'logp'; it has smiles, b"),
        ("smiles,logp,b,b\nC,1,2,3\n", {}, "a.csv: the column 'b' is there twice"),
        ("smiles,a,logp\nC,O,1\n", {"smiles": "a"}, "--smiles is 'a', .* another column"),
    ],
)
def test_wrong_columns_are_refused(
    tmp_path: Path, text: str, options: dict[str, Any], reason: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UsageError, match=reason):
        packed(tmp_path / "a.csv", **options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a.csv: no row in it"),
        ("smiles,logp\n\n", "a.csv: no row in it below the names"),
        ('smiles,logp\nC,1\nC,"1\nC,1\nC,1\n', "a.csv:3: unexpected end of data"),
        ('smiles,logp\nC,1\nC,"1"2\n', "a.csv:3: ',' expected after '\"'"),
    ],
)
def test_a_file_without_rows_or_with_broken_quotes_is_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(PackError, match=reason):
        packed(tmp_path / "a.csv", on_error="skip")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.csv: not found"):
        packed(tmp_path / "nowhere.csv")


def test_without_rdkit_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(PackError, match=r"pip install 'streamshard\[smiles\]'"):
        packed(write(tmp_path / "a.csv", *rows()))
