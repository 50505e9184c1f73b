from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import streamshard as ss
from streamshard.errors import PackError, SampleError
from tests.cli.command import environment
from tests.pack.sources import files_of
from tests.pack.test_graphs import numbered

Fields = dict[str, Any]


def graph(number: int, **fields: Any) -> Fields:
    """A path of `number` + 1 nodes."""
    return {
        "x": [[node / 2, 1.0] for node in range(number + 1)],
        "edge_index": [list(range(number)), list(range(1, number + 1))],
        "edge_attr": [[edge, 2] for edge in range(number)],
        "y": number,
        "name": f"path {number}",
        **fields,
    }


def write(path: Path, *lines: Fields | bytes) -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(text + b"\n" for text in texts))
    return path


def packed(path: Path, **options: Any) -> dict[int, dict[str, Any]]:
    ss.pack_graphs(path, path.parent / "dst", overwrite=True, **options)
    return numbered(path.parent / "dst")


def test_lines_become_graphs_with_their_fields(tmp_path: Path) -> None:
    found = packed(write(tmp_path / "a.jsonl", *(graph(number) for number in range(20))), seed=5)
    assert sorted(found) == list(range(20))
    for number, sample in found.items():
        made = sample["graph"]
        assert torch.equal(made.x, torch.tensor([[n / 2, 1.0] for n in range(number + 1)]))
        assert made.edge_index.tolist() == graph(number)["edge_index"]
        assert (made.edge_index.dtype, made.edge_index.shape) == (torch.int64, (2, number))
        assert (made.edge_attr.dtype, made.edge_attr.shape) == (torch.int64, (number, 2))
        assert made.y.tolist() == [number]
        assert sample["json"] == {"name": f"path {number}"}


def test_packing_is_in_random_order_or_in_that_of_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(graph(number) for number in range(20)))
    assert list(packed(path)) != list(range(20))
    assert list(packed(path, shuffle=False)) == list(range(20))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2, 3], torch.int64),
        ([1, 2.5, 3], torch.float32),
        ([1, 2, 3.0], torch.float32),
        ([2.5, 1, 2], torch.float32),
        ([True, False, True], torch.bool),
        ([True, 2, 3], torch.int64),
        ([[1], [2], [3.5]], torch.float32),
        ([[[1, 2]], [[3, 4]], [[5, 6]]], torch.int64),
    ],
)
def test_a_field_has_one_dtype_for_the_file_and_nothing_is_cut(
    tmp_path: Path, values: list[Any], dtype: torch.dtype
) -> None:
    lines = [graph(number, value=value) for number, value in enumerate(values)]
    found = packed(write(tmp_path / "a.jsonl", *lines))
    for number, value in enumerate(values):
        tensor = found[number]["graph"].value
        assert tensor.dtype == dtype
        assert tensor.tolist() == (value if isinstance(value, list) else [value])


def test_a_large_integer_is_kept_whole(tmp_path: Path) -> None:
    found = packed(write(tmp_path / "a.jsonl", graph(2, y=2**62 + 1)))
    assert found[0]["graph"].y.item() == 2**62 + 1


def test_names_with_index_and_face_are_numbers_of_nodes(tmp_path: Path) -> None:
    fields = {"my_index": [0, 1], "face": [[0], [1], [2]]}
    write(tmp_path / "a.jsonl", graph(2, **fields), graph(3, **fields))
    ss.pack_graphs(tmp_path / "a.jsonl", tmp_path / "dst", shuffle=False)
    dataset = ss.ShardDataset(str(tmp_path / "dst"), batch_size=2, parts="graph")
    batch = next(iter(ss.StreamLoader(dataset)))
    assert batch.my_index.tolist() == [0, 1, 3, 4]
    assert batch.face.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_empty_lists_have_the_width_of_the_other_lines(tmp_path: Path) -> None:
    lonely = {"x": [[0.0, 1.0]], "edge_index": [], "edge_attr": [], "y": 0, "name": ""}
    for lines in ([lonely, graph(2)], [graph(2), lonely]):
        found = packed(write(tmp_path / "a.jsonl", *lines))
        made = found[lines.index(lonely)]["graph"]
        assert (made.edge_index.shape, made.edge_attr.shape) == ((2, 0), (0, 2))
        assert (made.edge_index.dtype, made.edge_attr.dtype) == (torch.int64, torch.int64)


def test_the_number_of_nodes_may_be_all_that_is_known(tmp_path: Path) -> None:
    found = packed(write(tmp_path / "a.jsonl", {"edge_index": [[0], [1]], "num_nodes": 5}))
    assert found[0]["graph"].num_nodes == 5


def test_what_is_not_numbers_goes_into_the_json_part(tmp_path: Path) -> None:
    rest = {"name": "ä", "tags": {"a": 1}, "mixed": [1, "a", None], "none": None, "nothing": []}
    found = packed(write(tmp_path / "a.jsonl", graph(2, **rest)))
    assert found[0]["json"] == rest


def test_blank_lines_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    one, two = (json.dumps(graph(number)).encode() for number in (1, 2))
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + one + b"\r\n\r\n  \n" + two)
    assert sorted(packed(tmp_path / "a.jsonl")) == [0, 1]
    write(tmp_path / "a.jsonl", graph(1), b"", b"{}")
    with pytest.raises(SampleError, match=r"a\.jsonl:3: "):
        packed(tmp_path / "a.jsonl")


def test_a_compressed_file_gives_the_same_bytes_and_so_do_workers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(graph(number % 9) for number in range(100)))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    ss.pack_graphs(path, tmp_path / "plain", workers=0)
    ss.pack_graphs(f"{path}.gz", tmp_path / "gz", workers=2)
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "gz")


BAD: dict[str, tuple[Fields | bytes, str]] = {
    "no-json": (b'{"x": ', "not JSON: "),
    "no-text": (b'{"name": "\xff"}', "not JSON: .*utf-8"),
    "no-object": (b"[1, 2]", "a list; one JSON object a line is wanted"),
    "deep": (b"[" * 100_000, "JSON nested too deep"),
    "text": (graph(2, y="three"), "field 'y' holds a str here, and numbers in other lines"),
    "null": (graph(2, y=None), "field 'y' holds a NoneType here"),
    "null-inside": (graph(2, x=[[1, None], [1, 2], [3, 4]]), "field 'x' holds a NoneType here"),
    "ragged": (graph(2, x=[[1, 2], [1], [3, 4]]), "field 'x': expected sequence of length 2"),
    "too-large": (graph(2, edge_attr=[[2**70, 0], [0, 0]]), "field 'edge_attr': "),
    "nan": (b'{"x": [[NaN, 0]], "edge_index": []}', "field 'x' holds NaN"),
    "half-an-edge": (graph(2, edge_index=[[0.5], [1]]), "'edge_index' holds a fraction"),
    "pairs": (graph(2, edge_index=[[0, 1], [1, 2], [2, 0]]), r"edge_index is .*\[3, 2\]"),
    "outside": (graph(2, edge_index=[[0], [7]]), "edge_index points at node 7"),
    "nodes": (graph(2, num_nodes=2.5), "num_nodes is 2.5, not an integer"),
    "lacks-x": (
        {"edge_index": [[0], [1]], "y": 1, "num_nodes": 2, "name": ""},
        "field .* in some graphs only",
    ),
    "width": (graph(1, x=[[1, 2, 3], [1, 2, 3]]), "field 'x' has shape .*3.*2"),
    "no-name": ({k: v for k, v in graph(2).items() if k != "name"}, "has the parts .*'graph'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, name: str) -> None:
    bad, reason = BAD[name]
    path = write(tmp_path / "a.jsonl", graph(1), graph(2), b"", bad, graph(3))
    with pytest.raises(SampleError, match=rf"{tmp_path}/a\.jsonl:4: .*{reason}"):
        packed(path, shuffle=False)
    summary = ss.pack_graphs(path, tmp_path / "skip", on_error="skip", shuffle=False)
    assert (summary.samples, len(summary.skipped)) == (3, 1)
    assert "a.jsonl:4: " in summary.skipped[0]
    assert sorted(numbered(tmp_path / "skip")) == [0, 1, 3]


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_a_line_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(PackError, match=r"a\.jsonl: no line in it"):
        packed(tmp_path / "a.jsonl")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 30 MB; PyG and all else are imported before the measure."""
    line = json.dumps(graph(400, text="x" * 30_000)).encode()
    write(tmp_path / "a.jsonl", graph(3, text="x"), *([line] * 800))
    assert (tmp_path / "a.jsonl").stat().st_size > 30_000_000
    code = """if True:
        import resource, torch_geometric.data
        from streamshard.pack.jsonl import JsonlGraphs
        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = peak()
        graphs = JsonlGraphs("a.jsonl")
        for number in graphs.order(0):
            graphs.read(graphs[number])
        print((peak() - begin) // 1024)
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20
