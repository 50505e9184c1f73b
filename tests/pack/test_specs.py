"""Graphs named on the command line: what each kind of spec leads to, and with what arguments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.errors import UsageError
from streamshard.pack.jsonl import JsonlGraphs
from streamshard.pack.molecules import Molecules
from streamshard.pack.pt_files import PtFolder
from streamshard.pack.specs import call_spec, graphs_of, parse_args
from tests.pack.sources import write_files

SOURCE = b"""
import torch
from torch_geometric.data import Data

GRAPHS = 3

def rings():
    return [Data(x=torch.ones(n, 2), edge_index=torch.zeros(2, n).long()) for n in (1, 2, 3)]

def stream():
    yield from rings()

def number():
    return 3

def alone():
    return rings()[0]

def some(first, last=4):
    return [Data(x=torch.ones(n, 2)) for n in range(first, last)]

def broken(first):
    return first()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with graphs in it."""
    monkeypatch.chdir(tmp_path)
    return write_files(tmp_path, {"rings_here.py": SOURCE, "below/rings_below.py": SOURCE})


@pytest.fixture(autouse=True)
def modules_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [name for name in sys.modules if name.startswith(("rings_", "below"))]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    "spec",
    [
        "rings_here:rings",
        "rings_here.py:rings",
        "rings_here:stream",
        "./rings_here.py:stream",
        "below/rings_below.py:rings",
        "below.rings_below:rings",
    ],
)
def test_a_spec_leads_to_graphs_from_the_current_folder(here: Path, spec: str) -> None:
    before = list(sys.path)
    summary = ss.pack_graphs(spec, here / "dst", shuffle=False)
    assert summary.samples == 3
    assert [ss.open(str(here / "dst"))[row]["graph"].num_nodes for row in range(3)] == [1, 2, 3]
    assert sys.path == before


def test_a_file_is_found_by_its_absolute_path_from_anywhere(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert len(list(call_spec(f"{here}/rings_here.py:rings", {}))) == 3


def test_a_file_may_import_what_lies_beside_it(here: Path) -> None:
    write_files(here, {"rings_beside.py": b"from rings_here import rings as again\n"})
    assert len(list(call_spec("rings_beside.py:again", {}))) == 3


def test_a_file_may_define_dataclasses(here: Path) -> None:
    text = b"""
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Setting:
    count: int = 2

def some():
    return [None] * Setting().count
"""
    write_files(here, {"rings_setting.py": text})
    assert len(list(call_spec("rings_setting.py:some", {}))) == 2


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("rings_here", "'rings_here' is not a graph source; a .csv with --smiles, a .jsonl, a fol"),
        ("rings_here:", "is not a graph source"),
        (":rings", "is not a graph source"),
        ("", "is not a graph source"),
        ("rings_nowhere:rings", "rings_nowhere: no module named 'rings_nowhere'"),
        ("rings_here.nowhere:rings", "no module named"),
        (".rings_here:rings", "rings_here"),
        ("rings_nowhere.py:rings", r"rings_nowhere\.py: no such file"),
        ("rings_here:nothing", "there is no callable 'nothing' in rings_here"),
        ("rings_here.py:GRAPHS", r"there is no callable 'GRAPHS' in rings_here\.py"),
        ("rings_here:number", "rings_here:number returned a int, not an iterable"),
        ("rings_here:alone", "rings_here:alone returned a Data"),
        ("rings_here:some", "missing a required argument: 'first'; --arg NAME=VALUE"),
        ("s3://bucket/folder", "is not a graph source"),
        ("https://me:secret@host/folder?token=secret", "'https://host/folder' is not a graph"),
    ],
)
def test_a_spec_that_leads_nowhere_says_where_it_ended(here: Path, spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ss.pack_graphs(spec, here / "dst")
    assert not (here / "dst").exists()


def test_a_callable_gets_its_arguments_by_name(here: Path) -> None:
    summary = ss.pack_graphs("rings_here:some", here / "dst", args={"first": 2, "last": 7})
    assert summary.samples == 5


def test_arguments_that_a_callable_does_not_take_are_refused_before_it_is_called(
    here: Path,
) -> None:
    with pytest.raises(UsageError, match=r"rings_here:some: .*'colour'; --arg NAME=VALUE"):
        ss.pack_graphs("rings_here:some", here / "dst", args={"first": 2, "colour": "red"})


def test_an_error_inside_the_callable_comes_through_as_it_is(here: Path) -> None:
    with pytest.raises(TypeError, match="'int' object is not callable"):
        ss.pack_graphs("rings_here:broken", here / "dst", args={"first": 2})


def test_arguments_of_the_command_line_are_json_or_else_text() -> None:
    texts = ["a=3", "b=true", 'c=["x", 1.5]', "d=MUTAG", "e=", "f=x=y", 'g="3"', "h=null"]
    assert parse_args(texts) == {
        "a": 3,
        "b": True,
        "c": ["x", 1.5],
        "d": "MUTAG",
        "e": "",
        "f": "x=y",
        "g": "3",
        "h": None,
    }
    for wrong in ("a", "=3", "a b=3", ""):
        with pytest.raises(UsageError, match=f"--arg '{wrong}': NAME=VALUE is wanted"):
            parse_args([wrong])
    with pytest.raises(UsageError, match="each name once"):
        parse_args(["a=3", "a=4"])


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("a.jsonl", JsonlGraphs),
        ("a.JSONL", JsonlGraphs),
        ("folder", PtFolder),
        ("a.csv", Molecules),
    ],
)
def test_a_path_is_read_as_its_suffix_says(here: Path, spec: str, kind: type) -> None:
    write_files(here, {"a.csv": b"smiles\nC\n", "a.jsonl": b"{}\n", "A.JSONL": b"{}\n"})
    write_files(here, {"a.JSONL": b"{}\n", "folder/a.pt": b""})
    smiles = "smiles" if kind is Molecules else None
    assert type(graphs_of(spec, smiles=smiles)) is kind


@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        ("a.csv", {}, "a.csv: which column is the molecule"),
        ("a.csv.gz", {}, "a.csv.gz: which column is the molecule"),
        ("a.csv", {"smiles": "s", "args": {"a": 1}}, "a.csv: --arg is for the callable"),
        ("a.jsonl", {"smiles": "s"}, "a.jsonl: --smiles and --target are for a .csv"),
        ("a.jsonl", {"targets": ["s"]}, "a.jsonl: --smiles and --target are for a .csv"),
        ("a.jsonl.gz", {"args": {"a": 1}}, "a.jsonl.gz: --arg is for the callable"),
        (".", {"args": {"a": 1}}, "--arg is for the callable"),
        ("rings_here:rings", {"smiles": "s"}, "rings_here:rings: --smiles and --target are for"),
        ([], {"args": {"a": 1}}, "go with a source that is a path or spec"),
        ([], {"smiles": "s"}, "go with a source that is a path or spec"),
    ],
)
def test_an_option_of_another_kind_of_source_is_refused(
    here: Path, spec: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        ss.pack_graphs(spec, here / "dst", **options)
