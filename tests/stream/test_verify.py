"""What `verify` finds through the codecs, and that it finds the same in parallel."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData

import streamshard as ss
from streamshard.pack.repair import repair
from streamshard.shard import columns
from streamshard.shard.manifest import Manifest, ShardTable, index_name
from streamshard.stream.crew import Died, in_order
from tests.pack.sources import class_folders, image_bytes, ring, tars_of, write_tar
from tests.stream.hazard import hazardous


class Pair(Data):  # type: ignore[misc]
    """Two graphs in one, with rules of their own."""

    def __inc__(self, key: str, value: object, *args: object, **kwargs: object) -> object:
        return self.x_s.shape[0] if key == "index_s" else super().__inc__(key, value)


def narrow_graphs(folder: Path) -> None:
    graphs = [ring(nodes, y=torch.tensor([nodes * 100])) for nodes in range(2, 9)]
    ss.pack_graphs(graphs, folder, narrow=True, shard_size=4000)


def hetero_graphs(folder: Path) -> None:
    graphs = []
    for nodes in range(1, 5):
        graph = HeteroData()
        graph["paper"].x = torch.ones(nodes, 2)
        graph["author"].num_nodes = 3
        graph["author", "writes", "paper"].edge_index = torch.zeros(2, nodes).long()
        graphs.append(graph)
    ss.pack_graphs(graphs, folder)


def graphs_with_rules(folder: Path) -> None:
    pair = Pair(x=torch.rand(3, 2), x_s=torch.rand(2, 2), index_s=torch.tensor([0, 1, 1]))
    empty = Data(
        x=torch.full((1, 2), float("nan")), x_s=torch.zeros(0, 2), index_s=pair.index_s[:0]
    )
    ss.pack_graphs([pair, Pair(**empty.to_dict())], folder, allow_nan=True)


def images(folder: Path) -> None:
    class_folders(folder.with_name("photos"), ["ant", "bee"], each=8)
    ss.pack_images(folder.with_name("photos"), folder, shard_size=6_000)


@pytest.mark.parametrize("make", [narrow_graphs, hetero_graphs, graphs_with_rules, images])
def test_what_was_packed_decodes_and_agrees_with_its_schema(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "own")
    assert list(ss.open(tmp_path / "own").find_damage(decode=True)) == []


def undecodable(folder: Path) -> None:
    """Three tars of two images each, the first of which is none."""
    for number in range(3):
        members = [(f"{number}a.jpg", b"no image"), (f"{number}b.jpg", image_bytes("JPEG"))]
        write_tar(folder / f"{number}.tar", members)
    ss.index_tars(folder)


def test_decode_names_shard_key_part_and_offset_of_all_that_fails(tmp_path: Path) -> None:
    undecodable(tmp_path / "own")
    shards = ss.open(tmp_path / "own")
    assert list(shards.find_damage()) == []
    findings = list(shards.find_damage(decode=True))
    assert len(findings) == 3
    for number, finding in enumerate(findings):
        shard, row = shards.locate(2 * number)
        place = shards.at(shard, row, "jpg")
        assert finding.startswith(f"{place}: can't be decoded: "), finding
        assert f"key {number}a" in place


def noted(calls: list[tuple[int, int | None, int]], *call: int) -> None:
    calls.append(call)  # type: ignore[arg-type]


def test_findings_are_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    undecodable(tmp_path / "own")
    tars_of(tmp_path / "own")[1].unlink()
    with tars_of(tmp_path / "own")[0].open("r+b") as file:
        file.seek(600)
        file.write(b"damage")
    runs = []
    for workers in (0, 1, 3):
        calls: list[tuple[int, int | None, int]] = []
        shards = ss.open(tmp_path / "own")
        runs.append(
            (list(shards.find_damage(partial(noted, calls), decode=True, workers=workers)), calls)
        )
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0][0]) >= 3
    assert [call[0] for call in runs[0][1]] == [2, 4, 6]


def test_a_dataset_in_memory_is_verified(tmp_path: Path, memory_url: str) -> None:
    images(tmp_path / "own")
    fsspec.filesystem("memory").put(str(tmp_path / "own"), memory_url, recursive=True)
    assert list(ss.open(memory_url).find_damage(decode=True, workers=2)) == []


def rewritten(folder: Path, column: str, value: int) -> list[str]:
    """The findings after a number of an index was changed by someone who fits the hashes."""
    shards = ss.open(folder)
    manifest = shards.manifest
    path = folder / index_name(manifest.table[0].name)
    read = columns.from_buffer(np.fromfile(path, np.uint8), "x")
    arrays = {name: array.copy() for name, array in read.items()}
    arrays[column][1] = value
    path.write_bytes(columns.to_bytes(arrays))
    digest = hashlib.sha256(path.read_bytes()).digest()
    rows = [
        row._replace(index_sha256=digest) if not n else row for n, row in enumerate(manifest.table)
    ]
    changed = Manifest(
        manifest.parts, ShardTable.of(rows), manifest.classes, sizes_sha256=manifest.sizes_sha256
    )
    for name, data in changed.to_files().items():
        (folder / name).write_bytes(data)
    return list(ss.open(folder).find_damage())


@pytest.mark.parametrize(
    ("make", "column", "value", "reason"),
    [
        (images, "cls=", 7, "the index says value=7, the data "),
        (images, "png:height", 8, "another size than the manifest's 7x9"),
        (narrow_graphs, "graph:base", 8, "of other size"),
        (narrow_graphs, "graph:rows:x", 1000, "of other size"),
        (narrow_graphs, "graph:width:y", 8, "of other size"),
        (narrow_graphs, "graph:edges", 1000, "edges that its edge_index rows don't add up to"),
        (narrow_graphs, "graph:nodes", -1, "nodes below 0"),
        (hetero_graphs, "graph:nodes:paper", 1000, "nodes that those of its types don't add up to"),
    ],
)
def test_facts_that_contradict_the_schema_or_the_bytes_are_found_without_decoding(
    tmp_path: Path, make: Callable[[Path], None], column: str, value: int, reason: str
) -> None:
    make(tmp_path / "own")
    findings = rewritten(tmp_path / "own", column, value)
    key = ss.open(tmp_path / "own").index(0).keys[1]
    assert any(f"shard-000000.tar: key {key}, part " in one and reason in one for one in findings)
    done = repair(tmp_path / "own")
    if make is images:
        assert done.left == []
        assert done.fingerprint == done.was
        assert list(ss.open(tmp_path / "own").find_damage(decode=True)) == []
    else:  # the facts of graphs are not all told by their bytes
        assert "shard-000000.tar: what the index told of its graphs" in done.left[0]


def kill_a_worker() -> None:
    while not (children := multiprocessing.active_children()):
        time.sleep(0.05)
    time.sleep(0.5)
    assert children[0].pid
    os.kill(children[0].pid, signal.SIGKILL)


def test_a_shard_whose_worker_is_killed_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    undecodable(tmp_path / "own")
    first, *_ = tars_of(tmp_path / "own")
    first.unlink()
    os.mkfifo(first)  # nobody writes into it, so the worker waits
    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    findings = list(ss.open(tmp_path / "own").find_damage(decode=True, workers=1))
    killer.join()
    assert findings[0].startswith(f"{first}: not verified: the worker that read it was killed by")
    assert [finding.split(": ")[1][:5] for finding in findings[1:]] == ["key 1", "key 2"]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_process_that_dies_costs_its_piece_alone(workers: int) -> None:
    found = list(in_order(hazardous, 7, workers))
    assert found == [0, Died(-9), 4, 9, Died(-9), 25, 36]
    assert "killed by SIGKILL" in str(found[1])


def test_no_process_outlives_a_run_that_is_given_up() -> None:
    run = in_order(hazardous, 7, 2)
    assert next(run) == 0
    run.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
