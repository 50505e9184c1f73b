"""PyG's own datasets as sources, by name and as objects; nothing is downloaded."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import ClusterData

import streamshard as ss
from tests.pack.datasets import TU
from tests.pack.sources import ring, write_files
from tests.pack.test_graphs import assert_same, numbered


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a dataset went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


class Rings(InMemoryDataset):  # type: ignore[misc]
    """Rings of 2, 3, … nodes, processed below its root."""

    def __init__(self, root: str, count: int, scale: float = 1.0) -> None:
        self.count, self.scale = count, scale
        super().__init__(root)
        self.load(self.processed_paths[0])

    @property
    def processed_file_names(self) -> list[str]:
        return ["rings.pt"]

    def process(self) -> None:
        self.save([self.ring(n) for n in range(self.count)], self.processed_paths[0])

    def ring(self, number: int) -> Data:
        return ring(2 + number, y=torch.tensor([number * self.scale]))


def test_a_dataset_class_is_packed_by_name_and_arguments(tmp_path: Path) -> None:
    args = {"root": str(tmp_path / "root"), "count": 12, "scale": 0.5}
    summary = ss.pack_graphs("tests.pack.test_datasets:Rings", tmp_path / "dst", args=args)
    assert (summary.samples, summary.notes) == (12, [])
    found = numbered(tmp_path / "dst")
    for number in range(12):
        wanted = ring(2 + number, y=torch.tensor([number * 0.5]))
        assert_same(found[number]["graph"], wanted)


def test_tudataset_is_packed_from_raw_files_that_are_there(tmp_path: Path) -> None:
    files = {f"TINY/raw/TINY_{name}": text.encode() for name, text in TU.items()}
    write_files(tmp_path / "root", files)
    args = {"root": str(tmp_path / "root"), "name": "TINY"}
    ss.pack_graphs("torch_geometric.datasets:TUDataset", tmp_path / "dst", args=args)
    found = numbered(tmp_path / "dst")
    original = TUDataset(**args)
    assert [graph.num_nodes for graph in original] == [3, 2]
    for number, graph in enumerate(original):
        assert_same(found[number]["graph"], graph)


def two_cliques() -> Data:
    """Ten nodes: two cliques of five, and one edge between them."""
    edges = [
        (a, b) for a in range(10) for b in range(10) if a != b and (a // 5 == b // 5 or a + b == 9)
    ]
    return Data(
        x=torch.arange(20.0).reshape(10, 2),
        edge_index=torch.tensor(edges).T,
        edge_attr=torch.arange(len(edges)).float(),
        y=torch.arange(10) // 5,
    )


class Clusters(ClusterData):  # type: ignore[misc]
    """PyG's partitions, with the nodes' parts given where METIS, a compiled extra, finds them."""

    def _metis(self, edge_index: torch.Tensor, num_nodes: int) -> torch.Tensor:
        return torch.arange(num_nodes) // 5 * 2 % 3


def test_the_partitions_of_cluster_data_are_packed(tmp_path: Path) -> None:
    clusters = Clusters(two_cliques(), num_parts=3, log=False)
    assert len(clusters) == 3
    summary = ss.pack_graphs(clusters, tmp_path / "dst", allow_empty=True)
    assert (summary.samples, summary.notes) == (3, [])
    found = numbered(tmp_path / "dst")
    for number in range(3):
        assert_same(found[number]["graph"], clusters[number])
    assert [found[number]["graph"].num_nodes for number in range(3)] == [5, 0, 5]
    assert [found[number]["graph"].num_edges for number in range(3)] == [20, 0, 20]


def test_cluster_data_may_come_from_a_callable(tmp_path: Path) -> None:
    ss.pack_graphs("tests.pack.test_datasets:clusters", tmp_path / "dst", allow_empty=True)
    assert len(ss.open(str(tmp_path / "dst"))) == 3


def clusters() -> ClusterData:
    return Clusters(two_cliques(), num_parts=3, log=False)
