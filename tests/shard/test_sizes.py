"""The sizes of all graphs in one file: written with the dataset, checked whenever it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

import streamshard as ss
from streamshard.pack.writer import ShardWriter
from streamshard.shard import columns
from streamshard.shard.manifest import HEAD
from streamshard.shard.sizes import SIZES, Sizes
from streamshard.stream.reader import Shards

NODES = [3 + number * 7 % 11 for number in range(40)]
EDGES = [number * 5 % 13 for number in range(40)]


def graph(nodes: int, edges: int) -> Data:
    index = torch.arange(2 * edges).reshape(2, edges) % nodes
    return Data(x=torch.full((nodes, 2), float(nodes)), edge_index=index)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """40 graphs in several shards."""
    graphs = [graph(*sizes) for sizes in zip(NODES, EDGES, strict=True)]
    ss.pack_graphs(graphs, tmp_path / "graphs", shard_size="12KB", shuffle=False)
    assert len(list((tmp_path / "graphs").glob("*.tar"))) > 3
    return tmp_path / "graphs"


def sizes_of(folder: Path | str, **options: Any) -> list[list[int]]:
    return [column.tolist() for column in Shards(folder, **options).sizes()]


def findings(folder: Path) -> list[str]:
    return list(Shards(folder).find_damage())


def rewrite(folder: Path, sizes: Sizes) -> None:
    """Other sizes, with a manifest that stands by them."""
    data = columns.to_bytes(sizes._asdict())
    (folder / SIZES).write_bytes(data)
    manifest = Shards(folder).manifest
    manifest = dataclasses.replace(manifest, sizes_sha256=hashlib.sha256(data).hexdigest())
    (folder / HEAD).write_bytes(manifest.to_files()[HEAD])


def test_sizes_are_those_of_the_graphs_in_pack_order(packed: Path) -> None:
    assert sizes_of(packed) == [NODES, EDGES]
    assert Shards(packed).sizes().nodes.dtype == np.int32
    assert findings(packed) == []


def test_sizes_are_mapped_not_read(packed: Path) -> None:
    base: Any = Shards(packed).sizes().nodes
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(base).__name__ in ("memoryview", "mmap")


def test_large_sizes_are_kept_whole() -> None:
    large = np.array([2**31, 5])
    joined = Sizes.joined([Sizes(large, np.array([1, 2])), Sizes(large, large[1:].repeat(2))])
    assert joined.nodes.tolist() == [2**31, 5, 2**31, 5]
    assert joined.edges.dtype == np.int32


def test_a_dataset_without_graphs_has_no_sizes(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "own") as writer:
        writer.write({"__key__": "1", "cls": 3})
    assert not (tmp_path / "own" / SIZES).exists()
    assert "sizes" not in (tmp_path / "own" / HEAD).read_text()


def test_the_fingerprint_does_not_depend_on_the_sizes(packed: Path) -> None:
    before = Shards(packed).manifest.fingerprint
    rewrite(packed, Sizes(np.zeros(40, np.int32), np.zeros(40, np.int32)))
    assert Shards(packed).manifest.fingerprint == before


def test_tars_of_others_get_sizes_too(packed: Path, tmp_path: Path) -> None:
    shutil.rmtree(packed / ".streamshard")
    ss.index_tars(packed, out=str(tmp_path / "aside"))
    assert sizes_of(packed, index=str(tmp_path / "aside")) == [NODES, EDGES]


def test_a_sample_without_its_graph_has_no_size(packed: Path, tmp_path: Path) -> None:
    shutil.rmtree(packed / ".streamshard")
    with tarfile.open(packed / "shard-999999.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("last.txt"), io.BytesIO())
    ss.index_tars(packed)
    assert sizes_of(packed) == [[*NODES, 0], [*EDGES, 0]]
    assert findings(packed) == []


def test_a_dataset_that_was_packed_without_sizes_has_them_from_its_indexes(packed: Path) -> None:
    manifest = dataclasses.replace(Shards(packed).manifest, sizes_sha256=None)
    (packed / HEAD).write_bytes(manifest.to_files()[HEAD])
    (packed / SIZES).unlink()
    assert sizes_of(packed) == [NODES, EDGES]
    assert findings(packed) == []


def test_some_of_the_shards_have_their_own_sizes(packed: Path) -> None:
    counts = Shards(packed).manifest.table.samples.tolist()
    first, second = counts[0], counts[1]
    assert sizes_of(f"{packed}/shard-00000{{1,0}}.tar") == [
        NODES[first : first + second] + NODES[:first],
        EDGES[first : first + second] + EDGES[:first],
    ]


def test_damaged_sizes_are_an_error_and_a_finding(packed: Path) -> None:
    data = bytearray((packed / SIZES).read_bytes())
    data[-1] ^= 1
    (packed / SIZES).write_bytes(data)
    with pytest.raises(ss.errors.DamagedError, match=r"sizes\.safetensors: not the sizes"):
        ss.ShardDataset(packed, budget=ss.Budget(max_nodes=50))
    (finding,) = findings(packed)
    assert "sizes.safetensors: not the sizes" in finding


def test_missing_sizes_are_an_error_and_a_finding(packed: Path) -> None:
    (packed / SIZES).unlink()
    with pytest.raises(ss.errors.DamagedError, match=r"sizes\.safetensors: missing"):
        ss.ShardDataset(packed, budget=ss.Budget(max_nodes=50))
    (finding,) = findings(packed)
    assert "sizes.safetensors: missing" in finding
    assert len(list(ss.ShardDataset(packed, batch_size=10, parts="graph"))) == 4


def test_sizes_that_differ_from_the_indexes_are_found_by_key(packed: Path) -> None:
    edges = np.array(EDGES, np.int32)
    edges[27] += 1
    rewrite(packed, Sizes(np.array(NODES, np.int32), edges))
    (finding,) = findings(packed)
    assert finding.endswith(f"key 000027 has edges={EDGES[27] + 1}, its index says {EDGES[27]}")


@pytest.mark.parametrize("count", [39, 41])
def test_sizes_of_another_number_of_samples_are_refused(packed: Path, count: int) -> None:
    rewrite(packed, Sizes(np.zeros(count, np.int32), np.zeros(count, np.int32)))
    with pytest.raises(ss.errors.DamagedError, match=r"sizes\.safetensors: columns"):
        sizes_of(packed)


def test_a_changed_hash_in_the_manifest_is_refused(packed: Path) -> None:
    text, digest = (packed / HEAD).read_text(), Shards(packed).manifest.sizes_sha256
    assert digest
    (packed / HEAD).write_text(text.replace(digest, digest[::-1]))
    with pytest.raises(ss.errors.DamagedError, match="changed after it was written"):
        Shards(packed)


def test_overwriting_removes_the_sizes(packed: Path) -> None:
    with ShardWriter(packed, overwrite=True) as writer:
        writer.write({"__key__": "1", "cls": 3})
    assert not (packed / SIZES).exists()
