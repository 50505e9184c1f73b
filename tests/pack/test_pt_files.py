"""Folders of `.pt` files: what is read, what is refused, and that nothing is ever executed."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData

import streamshard as ss
from streamshard.errors import PackError, SampleError
from streamshard.pack import pt_files
from streamshard.pack.pt_files import PtFolder
from tests.pack.sources import files_of, ring
from tests.pack.test_graphs import assert_same, molecules, numbered


class Custom(Data):  # type: ignore[misc]
    """What a user's own class of graphs looks like."""


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def save(value: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def as_dict(graph: Data) -> dict[str, Any]:
    return {"edge_index": graph.edge_index, "x": graph.x, "name": "ring", "num_nodes": 3}


def test_graphs_are_numbered_over_the_sorted_files(tmp_path: Path) -> None:
    graphs = molecules(6)
    save(graphs[5], tmp_path / "src" / "c" / "0.pt")
    save(graphs[0], tmp_path / "src" / "a.pt")
    save(graphs[1:5], tmp_path / "src" / "b.pt")
    summary = ss.pack_graphs(tmp_path / "src", tmp_path / "dst", seed=2)
    assert summary.samples == 6
    assert any("shuffled file by file" in note for note in summary.notes)
    found = numbered(tmp_path / "dst")
    for number, graph in enumerate(graphs):
        assert_same(found[number]["graph"], graph)
        assert found[number]["json"] == {"smiles": graph.smiles, "tags": graph.tags}


def test_files_give_the_same_bytes_as_the_graphs_themselves(tmp_path: Path) -> None:
    graphs = molecules(20)
    for number, graph in enumerate(graphs):
        save(graph, tmp_path / "src" / f"{number:02d}.pt")
    summary = ss.pack_graphs(tmp_path / "src", tmp_path / "files", seed=3)
    ss.pack_graphs(graphs, tmp_path / "graphs", seed=3)
    assert summary.notes == []
    assert files_of(tmp_path / "files") == files_of(tmp_path / "graphs")


def test_workers_give_the_same_bytes(tmp_path: Path) -> None:
    graphs = molecules(70)
    save(graphs[:40], tmp_path / "src" / "a.pt")
    save(graphs[40:], tmp_path / "src" / "b.pt")
    for workers in (0, 2):
        ss.pack_graphs(tmp_path / "src", tmp_path / str(workers), workers=workers)
    assert files_of(tmp_path / "0") == files_of(tmp_path / "2")


def test_a_dict_of_tensors_is_a_graph(tmp_path: Path) -> None:
    save([as_dict(ring(3)), as_dict(ring(3))], tmp_path / "src" / "a.pt")
    ss.pack_graphs(tmp_path / "src", tmp_path / "dst")
    sample = numbered(tmp_path / "dst")[1]
    assert sample["json"] == {"name": "ring"}
    assert torch.equal(sample["graph"].x, ring(3).x)


def test_heterogeneous_graphs_are_read(tmp_path: Path) -> None:
    graph = HeteroData(paper={"x": torch.ones(2, 3)}, author={"x": torch.ones(1, 4)})
    graph["author", "writes", "paper"].edge_index = torch.zeros(2, 1).long()
    save(graph, tmp_path / "a.pt")
    folder = PtFolder(str(tmp_path))
    found, rest = folder.read(folder[0])
    assert type(found) is HeteroData
    assert rest == {}
    assert found.metadata() == graph.metadata()
    assert torch.equal(found["paper"].x, graph["paper"].x)


def test_files_of_the_old_format_are_read(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    torch.save(ring(4), tmp_path / "src" / "a.pt", _use_new_zipfile_serialization=False)
    ss.pack_graphs(tmp_path / "src", tmp_path / "dst")
    assert_same(numbered(tmp_path / "dst")[0]["graph"], ring(4))


def test_each_file_is_loaded_once_for_its_graphs_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        save([ring(n) for n in range(2, 12)], tmp_path / "src" / f"{name}.pt")
    loaded = Counter[tuple[str, bool]]()
    load = pt_files._load

    def counted(path: str, *, mmap: bool) -> Any:
        loaded[path, mmap] += 1
        return load(path, mmap=mmap)

    monkeypatch.setattr(pt_files, "_load", counted)
    assert ss.pack_graphs(tmp_path / "src", tmp_path / "dst").samples == 30
    assert len(loaded) == 6  # each once for its outline, once for its graphs
    assert set(loaded.values()) == {1}
    assert pt_files._graphs_of.cache_info().currsize == 0


def test_other_files_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    save(ring(3), tmp_path / "src" / "a.pt")
    save(ring(3), tmp_path / "src" / ".hidden.pt")
    (tmp_path / "src" / "notes.txt").write_text("x")
    summary = ss.pack_graphs(tmp_path / "src", tmp_path / "dst")
    assert summary.samples == 1
    assert summary.notes == ["1 files that are not .pt were left out"]


@pytest.mark.parametrize("files", [[], ["notes.txt"]])
def test_a_folder_without_graphs_is_refused(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "src").mkdir()
    for name in files:
        (tmp_path / "src" / name).write_text("x")
    with pytest.raises(PackError, match=f"src: no .pt file there, {len(files)} other files"):
        ss.pack_graphs(tmp_path / "src", tmp_path / "dst")


@pytest.mark.parametrize("env", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("inside", ["alone", "list", "graph"])
def test_a_pickle_that_runs_code_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str | None, inside: str
) -> None:
    if env:
        monkeypatch.setenv(env, "1")
    mark = tmp_path / "mark"
    bomb: Any = Bomb(mark)
    value = {"alone": bomb, "list": [ring(3), bomb], "graph": ring(3, payload=bomb)}[inside]
    save(value, tmp_path / "src" / "bomb.pt")
    save(ring(3), tmp_path / "src" / "good.pt")
    with pytest.raises(SampleError, match=r"bomb\.pt: it needs posix\.mkdir, which is not unpick"):
        ss.pack_graphs(tmp_path / "src", tmp_path / "dst", shuffle=False)
    summary = ss.pack_graphs(tmp_path / "src", tmp_path / "dst", on_error="skip", overwrite=True)
    assert (summary.samples, len(summary.skipped)) == (1, 1)
    assert not mark.exists()


REFUSED = {
    "class": (Custom(x=torch.ones(2, 3)), r"it needs .*Custom, which is not unpickled; save Data"),
    "batch": (Batch.from_data_list([ring(3), ring(4)]), "it needs .*DynamicInheritanceGetter"),
    "array": ({"x": np.ones((2, 3))}, r"it needs numpy\."),
    "text": ("a graph", "a str, which is no graph; save Data, HeteroData, a dict of tensors"),
    "tuple": ((ring(3), None), "a tuple, which is no graph"),
    "nested": ([[ring(3)]], "a list, which is no graph"),
    "no-tensor": ({"a": 3}, "a dict without a tensor"),
    "numbers": ({3: torch.ones(2, 3)}, "a dict, which is no graph"),
    "nothing": ([], "an empty list; remove the file"),
    "none": (None, "a NoneType, which is no graph"),
    "bad-edges": ({"x": torch.ones(2, 3), "edge_index": torch.full((2, 1), 9)}, "points at node 9"),
    "other-fields": ({"x": torch.ones(2, 3)}, "field 'edge_index' is in some graphs only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_graph_is_refused_by_file_with_reason_and_remedy(
    tmp_path: Path, name: str
) -> None:
    value, reason = REFUSED[name]
    save(ring(3), tmp_path / "src" / "a.pt")
    save(value, tmp_path / "src" / "b.pt")
    with pytest.raises(SampleError, match=rf"src/b\.pt: .*{reason}") as raised:
        ss.pack_graphs(tmp_path / "src", tmp_path / "dst", shuffle=False)
    assert "weights_only" not in str(raised.value), "PyTorch advises to load it unchecked"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("data", [b"", b"no torch file", b"PK\x03\x04 and then nothing"])
def test_bytes_that_are_no_torch_file_are_refused(tmp_path: Path, data: bytes) -> None:
    save(ring(3), tmp_path / "src" / "a.pt")
    (tmp_path / "src" / "b.pt").write_bytes(data)
    with pytest.raises(SampleError, match=r"b\.pt: not a whole file of torch.save"):
        ss.pack_graphs(tmp_path / "src", tmp_path / "dst")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = save(Data(x=torch.ones(1000, 3)), tmp_path / "src" / "a.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SampleError, match=r"a\.pt: damaged: a/data/0 in it has another CRC-32"):
        ss.pack_graphs(tmp_path / "src", tmp_path / "dst")


def test_one_of_several_graphs_of_a_file_is_named_by_its_place(tmp_path: Path) -> None:
    save([ring(3), ring(4), "no graph"], tmp_path / "src" / "a.pt")
    with pytest.raises(SampleError, match=r"src/a\.pt, graph 2: a str, which is no graph"):
        ss.pack_graphs(tmp_path / "src", tmp_path / "dst")
