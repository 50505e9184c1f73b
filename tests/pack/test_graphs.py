from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset

import streamshard as ss
from streamshard.errors import PackError, SampleError, StreamshardError
from tests.pack.sources import files_of, read_by_streamshard, ring

NAN = float("nan")
INFINITY = float("inf")


class Collated(InMemoryDataset):  # type: ignore[misc]
    """Graphs as PyG's own datasets keep them."""

    def __init__(self, graphs: Sequence[Data]) -> None:
        super().__init__(None)
        self._data, self.slices = self.collate(graphs)


def molecules(count: int = 12) -> list[Data]:
    """Graphs of several sizes with features, edge features, targets and a name."""
    graphs = []
    for number in range(count):
        graph = ring(2 + number % 5)
        graph.edge_attr = torch.full((graph.num_edges, 2), number, dtype=torch.float16)
        graph.y = torch.tensor([number])
        graph.pos = graph.x.double()
        graph.smiles = f"C{number}"
        graph.tags = {"number": number, "even": number % 2 == 0, "path": [1, "a", None]}
        graphs.append(graph)
    return graphs


def assert_same(found: Data, original: Data) -> None:
    """Every tensor equal in value, dtype and shape; nothing more, nothing less."""
    tensors = {name: v for name, v in original.to_dict().items() if isinstance(v, torch.Tensor)}
    assert set(found.to_dict()) - {"num_nodes"} == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert found.num_nodes == original.num_nodes


def numbered(folder: Path) -> dict[int, dict[str, Any]]:
    shards = ss.open(str(folder))
    return {int(sample["__key__"]): sample for sample in (shards[n] for n in range(len(shards)))}


def test_graphs_come_back_as_they_were(tmp_path: Path) -> None:
    graphs = molecules()
    summary = ss.pack_graphs(graphs, tmp_path / "dst", shard_size=10_000)
    assert (summary.samples, summary.skipped) == (12, [])
    assert summary.shards > 1
    found = numbered(tmp_path / "dst")
    assert sorted(found) == list(range(12))
    for number, graph in enumerate(graphs):
        assert_same(found[number]["graph"], graph)
        assert found[number]["json"] == {"smiles": graph.smiles, "tags": graph.tags}


def test_graphs_are_plain_safetensors(tmp_path: Path) -> None:
    graphs = molecules(3)
    ss.pack_graphs(graphs, tmp_path / "dst")
    for key, parts in read_by_streamshard(str(tmp_path / "dst")):
        tensors = load(parts["graph.safetensors"])
        assert tensors.pop("num_nodes").item() == graphs[int(key)].num_nodes
        assert_same(Data(**tensors), graphs[int(key)])


def test_packing_leaves_the_graphs_alone(tmp_path: Path) -> None:
    graphs, fresh = molecules(4), molecules(4)
    ss.pack_graphs(graphs, tmp_path / "dst")
    for graph, same in zip(graphs, fresh, strict=True):
        assert graph.to_dict().keys() == same.to_dict().keys()
        assert graph.tags == same.tags


def test_graphs_without_other_attributes_have_no_json(tmp_path: Path) -> None:
    ss.pack_graphs([ring(3), ring(4)], tmp_path / "dst")
    assert set(ss.open(str(tmp_path / "dst"))[0]) == {"__key__", "graph"}


def test_the_number_of_nodes_is_kept_where_only_it_is_known(tmp_path: Path) -> None:
    edges = torch.tensor([[0, 1], [1, 0]])
    graphs = [Data(edge_index=edges, num_nodes=nodes) for nodes in (2, 5, 9)]
    ss.pack_graphs(graphs, tmp_path / "dst")
    found = numbered(tmp_path / "dst")
    assert [found[number]["graph"].num_nodes for number in range(3)] == [2, 5, 9]


@pytest.mark.parametrize("kind", ["list", "dataset", "batch"])
def test_whatever_has_a_length_and_numbers_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    graphs = [ring(nodes, y=torch.tensor([nodes])) for nodes in range(1, 40)]
    source: Any = {"list": list, "dataset": Collated, "batch": Batch.from_data_list}[kind](graphs)
    summary = ss.pack_graphs(source, tmp_path / "dst", seed=3)
    ss.pack_graphs(tuple(graphs), tmp_path / "tuple", seed=3)
    assert summary.notes == []
    keys = [key for key, _ in read_by_streamshard(str(tmp_path / "dst"))]
    assert sorted(keys) == [f"{number:06d}" for number in range(39)] != keys
    assert files_of(tmp_path / "dst") == files_of(tmp_path / "tuple")
    found = numbered(tmp_path / "dst")
    for number, graph in enumerate(graphs):
        assert_same(found[number]["graph"], graph)


def test_a_generator_keeps_its_order_and_says_so(tmp_path: Path) -> None:
    graphs = [ring(nodes) for nodes in range(1, 30)]

    def generator() -> Iterator[Data]:
        yield from graphs

    summary = ss.pack_graphs(generator(), tmp_path / "dst")
    assert summary.samples == 29
    assert any("not shuffled" in note for note in summary.notes)
    shards = ss.open(str(tmp_path / "dst"))
    assert [int(key) for key in shards.keys()] == list(range(29))  # noqa: SIM118
    for number, graph in enumerate(graphs):
        assert_same(shards[number]["graph"], graph)
    assert ss.pack_graphs(generator(), tmp_path / "kept", shuffle=False).notes == []


def test_without_shuffle_graphs_are_packed_in_their_order(tmp_path: Path) -> None:
    ss.pack_graphs([ring(n) for n in range(1, 30)], tmp_path / "dst", shuffle=False)
    keys = [key for key, _ in read_by_streamshard(str(tmp_path / "dst"))]
    assert keys == [f"{number:06d}" for number in range(29)]


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    sources: list[Any] = [[], iter([])]
    for nothing in sources:
        with pytest.raises(PackError, match="dst: no sample was written"):
            ss.pack_graphs(nothing, tmp_path / "dst")
    assert files_of(tmp_path) == {}


def test_one_graph_in_place_of_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StreamshardError, match="Data"):
        ss.pack_graphs(ring(3), tmp_path / "dst")


def with_edges(*edges: list[int], nodes: int = 2) -> Data:
    return Data(x=torch.zeros(nodes, 3), edge_index=torch.tensor(edges).T)


BAD = {
    "edge-out-of-range": (with_edges([0, 2]), "edge_index points at node 2"),
    "edge-negative": (with_edges([0, -1]), "edge_index points at node .*-1"),
    "edges-of-uint8": (
        Data(x=torch.zeros(2, 3), edge_index=torch.zeros(2, 1, dtype=torch.uint8)),
        "edge_index is torch.uint8",
    ),
    "edges-of-three-rows": (
        Data(x=torch.zeros(2, 3), edge_index=torch.zeros(3, 1, dtype=torch.int64)),
        r"edge_index is .*\[3, 1\]",
    ),
    "nan": (ring(3).update({"x": torch.full((3, 3), NAN)}), "field 'x' holds NaN"),
    "infinity": (
        ring(3).update({"x": torch.full((3, 3), -INFINITY)}),
        "field 'x' holds NaN or inf",
    ),
    "empty": (Data(x=torch.zeros(0, 3), edge_index=torch.zeros(2, 0).long()), "without nodes"),
    "field-in-some-only": (ring(3, z=torch.zeros(3)), "field 'z' is in some graphs only"),
    "field-lacking": (Data(x=torch.zeros(2, 3)), "field 'edge_index' is in some graphs only"),
    "dtype": (ring(3).update({"x": torch.zeros(3, 3).double()}), "'x' has dtype float64.*float32"),
    "width": (ring(3).update({"x": torch.zeros(3, 4)}), "'x' has shape .*4.*3"),
    "other-attributes": (ring(3, name="three"), "json"),
    "not-json": (ring(3, name={1, 2}), "json"),
    "sparse": (ring(3).update({"x": torch.eye(3).to_sparse()}), "field 'x' .*not a dense tensor"),
    "nodes-unknown": (Data(edge_index=torch.tensor([[0], [1]])), "number of nodes is not known"),
    "hetero": (
        HeteroData(paper={"x": torch.zeros(2, 3)}),
        "node types \\[.paper.\\], in the graphs before",
    ),
    "no-graph": ({"x": 3}, "dict is not a PyG Data"),
    "none": (None, "NoneType is not a PyG Data"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_graph_that_can_not_be_packed_is_named_by_its_number(tmp_path: Path, name: str) -> None:
    bad, reason = BAD[name]
    graphs = [ring(3), ring(4), ring(5), bad, ring(6)]
    with pytest.raises(SampleError, match=f"000003.*{reason}"):
        ss.pack_graphs(graphs, tmp_path / "dst", shuffle=False)
    assert not any("manifest" in file for file in files_of(tmp_path))
    summary = ss.pack_graphs(
        graphs, tmp_path / "dst", shuffle=False, on_error="skip", overwrite=True
    )
    assert sorted(numbered(tmp_path / "dst")) == [0, 1, 2, 4]
    assert summary.samples == 4
    assert len(summary.skipped) == 1
    assert "000003" in summary.skipped[0]


def test_what_is_skipped_leaves_no_trace_in_the_bytes(tmp_path: Path) -> None:
    good = [ring(nodes) for nodes in range(2, 8)]
    ss.pack_graphs(good, tmp_path / "clean", shuffle=False)
    bad = [ring(3).update({"x": torch.full((3, 3), NAN)}), ring(3, z=torch.ones(1))]
    ss.pack_graphs([*good, *bad], tmp_path / "skipped", shuffle=False, on_error="skip")
    assert files_of(tmp_path / "clean") == files_of(tmp_path / "skipped")


def test_graphs_without_nodes_are_taken_where_that_is_allowed(tmp_path: Path) -> None:
    graphs = [ring(3), BAD["empty"][0], ring(4)]
    ss.pack_graphs(graphs, tmp_path / "dst", allow_empty=True)
    found = numbered(tmp_path / "dst")
    assert [found[number]["graph"].num_nodes for number in range(3)] == [3, 0, 4]
    assert_same(found[1]["graph"], graphs[1])


def test_nan_is_taken_where_that_is_allowed(tmp_path: Path) -> None:
    graph = BAD["nan"][0]
    ss.pack_graphs([ring(4), graph], tmp_path / "dst", allow_nan=True)
    found = numbered(tmp_path / "dst")[1]["graph"].x
    assert found.isnan().all()
    assert found.shape == (3, 3)


def test_an_error_of_the_source_itself_comes_through_and_leaves_no_dataset(tmp_path: Path) -> None:
    def generator() -> Iterator[Data]:
        yield ring(3)
        raise OSError("the disk of the source")

    with pytest.raises(OSError, match="the disk of the source"):
        ss.pack_graphs(generator(), tmp_path / "dst")
    assert not any(name.endswith((".tmp", "manifest.json")) for name in files_of(tmp_path))


def test_edges_that_were_widened_are_told_of_once(tmp_path: Path) -> None:
    graphs = [Data(x=torch.zeros(3, 1), edge_index=torch.zeros(2, 1).int()) for _ in range(5)]
    summary = ss.pack_graphs(graphs, tmp_path / "packed")
    assert summary.notes == ["edge_index was int32 in some graphs, and is kept as int64"]
    assert not ss.pack_graphs([ring(3)], tmp_path / "other").notes
