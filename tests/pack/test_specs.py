"""`module:callable` and `file.py:callable`: graphs named on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import streamshard as ss
from streamshard.errors import UsageError
from streamshard.pack.specs import call_spec
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
        ("rings_here", "'rings_here' is not a graph source; module:callable or file.py:callable"),
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
    ],
)
def test_a_spec_that_leads_nowhere_says_where_it_ended(here: Path, spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ss.pack_graphs(spec, here / "dst")
    assert not (here / "dst").exists()
