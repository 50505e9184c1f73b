"""Graph batches are PyG's own, tensor for tensor."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data, HeteroData

import streamshard as ss
from streamshard.errors import UsageError
from tests.codec.pictures import encoded, picture
from tests.stream.pyg import (
    Own,
    assert_same_batches,
    assert_same_values,
    fields,
    graph_lists,
    hetero_lists,
)

any_lists = st.one_of(graph_lists(), hetero_lists())


def check_parity(graphs: list[Any], **how: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ss.pack_graphs(graphs, f"{folder}/packed", shard_size="4KB", **how)
        dataset = ss.ShardDataset(
            f"{folder}/packed", batch_size=3, tail="exact", parts=("graph", "__key__"),
            world=ss.World(0, 1),
        )  # fmt: skip
        for batch, keys in ss.StreamLoader(dataset):
            originals = [graphs[int(key)] for key in keys]
            assert_same_batches(batch, Batch.from_data_list(originals))
        samples = ss.open(f"{folder}/packed")
        for number in range(len(samples)):
            sample = samples[number]
            original = fields(graphs[int(sample["__key__"])])
            found = fields(sample["graph"])
            tensors = {name: value for name, value in original.items() if name[1] != "num_nodes"}
            counts = {name for name in found if name[1] == "num_nodes"}
            assert_same_values({n: v for n, v in found.items() if n not in counts}, tensors)


@settings(max_examples=60, deadline=None)
@given(any_lists, st.booleans())
def test_batches_equal_pygs_to_the_bit(graphs: list[Any], narrow: bool) -> None:
    check_parity(graphs, narrow=narrow)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))  # each within the time that one test has
@settings(max_examples=50, deadline=None)
@given(graphs=any_lists, narrow=st.booleans())
def test_batches_equal_pygs_to_the_bit_in_the_long_form(
    graphs: list[Any], narrow: bool, part: int
) -> None:
    check_parity(graphs, narrow=narrow)


@settings(max_examples=60, deadline=None)
@given(any_lists, st.data())
def test_chosen_and_followed_fields_are_pygs(graphs: list[Any], data: st.DataObject) -> None:
    names = sorted({name for _, name in fields(graphs[0])} - {"num_nodes"})
    assume(names)
    followed = data.draw(st.lists(st.sampled_from(names), unique=True))
    excluded = data.draw(st.lists(st.sampled_from(names), unique=True))
    chosen = data.draw(st.none() | st.lists(st.sampled_from(names), unique=True))
    choice = ss.Graphs(fields=chosen, follow_batch=followed, exclude_keys=excluded)
    left_out = [*excluded, *(name for name in names if chosen is not None and name not in chosen)]
    with tempfile.TemporaryDirectory() as folder:
        ss.pack_graphs(graphs, f"{folder}/packed", shuffle=False)
        dataset = ss.ShardDataset(
            f"{folder}/packed", batch_size=len(graphs), parts="graph", decode={"graph": choice},
            world=ss.World(0, 1),
        )  # fmt: skip
        (batch,) = ss.StreamLoader(dataset)
    expected = fields(Batch.from_data_list(graphs, follow_batch=followed, exclude_keys=left_out))
    found = fields(batch)
    # PyG counts nodes only where what is left tells how many there are; here they always are.
    always = {name for name in found if name[1] in ("batch", "ptr", "num_nodes")}
    assert_same_values(
        {name: value for name, value in found.items() if name not in always or name in expected},
        expected,
    )
    whole = fields(Batch.from_data_list(graphs))
    assert_same_values(
        {name: found[name] for name in always if name in whole},
        {name: whole[name] for name in always if name in whole},
    )


def test_only_the_bytes_of_chosen_fields_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = [
        Data(x=torch.randn(3, 1000), edge_index=torch.zeros(2, 1).long(), y=torch.randn(1))
        for _ in range(4)
    ]
    ss.pack_graphs(graphs, tmp_path / "packed", shuffle=False)
    read: list[int] = []
    from streamshard.stream import graphs as room

    slices = room._slices

    def counted(*args: Any) -> list[memoryview]:
        pieces = slices(*args)
        read.extend(map(len, pieces))
        return pieces

    monkeypatch.setattr(room, "_slices", counted)
    dataset = ss.ShardDataset(
        tmp_path / "packed", batch_size=4, parts="graph", decode={"graph": ss.Graphs(fields=["y"])}
    )
    (batch,) = ss.StreamLoader(dataset)
    assert sorted(batch.keys()) == ["batch", "num_nodes", "ptr", "y"]
    assert sum(read) == 4 * 4


def test_a_choice_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    ss.pack_graphs([Data(x=torch.zeros(1, 1))], tmp_path / "packed")
    for choice in (ss.Graphs(fields=["z"]), ss.Graphs(follow_batch=["z"])):
        with pytest.raises(UsageError, match="no field 'z'; they have x"):
            ss.ShardDataset(tmp_path / "packed", batch_size=1, decode={"graph": choice})


def hetero(papers: int, authors: int) -> HeteroData:
    data = HeteroData()
    data["paper"].x = torch.randn(papers, 2)
    data["author"].x = torch.randn(authors, 3)
    rows = [torch.randint(0, authors, (5,)), torch.randint(0, papers, (5,))]
    data["author", "writes", "paper"].edge_index = torch.stack(rows)
    return data


def test_fields_of_one_type_are_chosen_by_their_whole_name(tmp_path: Path) -> None:
    ss.pack_graphs([hetero(3, 2), hetero(4, 5)], tmp_path / "packed", shuffle=False)
    choice = ss.Graphs(fields=["paper/x", "author/writes/paper/edge_index"])
    dataset = ss.ShardDataset(
        tmp_path / "packed", batch_size=2, parts="graph", decode={"graph": choice}
    )
    (batch,) = ss.StreamLoader(dataset)
    assert set(batch["paper"].keys()) == {"x", "batch", "ptr"}
    assert set(batch["author"].keys()) == {"batch", "ptr", "num_nodes"}
    assert batch["author", "writes", "paper"].edge_index.shape == (2, 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pickled_copied_and_moved_whole(tmp_path: Path, workers: int) -> None:
    graphs: list[Any] = [hetero(papers, 2) for papers in range(1, 9)]
    ss.pack_graphs(graphs, tmp_path / "packed", shuffle=False)
    dataset = ss.ShardDataset(tmp_path / "packed", batch_size=4, parts="graph")
    with ss.StreamLoader(dataset, num_workers=workers) as loader:
        for number, batch in enumerate(loader):
            expected = Batch.from_data_list(graphs[number * 4 : number * 4 + 4])
            for same in (batch, copy.copy(batch), copy.deepcopy(batch), batch.to("cpu")):
                assert_same_batches(same, expected)
            assert_same_batches(pickle.loads(pickle.dumps(batch)), expected)
            assert_same_batches(batch.clone(), expected)


def test_tables_are_made_when_asked_for_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamshard.stream import graph_batch as room

    made: list[str] = []
    by_store = room._by_store

    def counted(*args: Any) -> dict[Any, Any]:
        made.append("table")
        return by_store(*args)

    monkeypatch.setattr(room, "_by_store", counted)
    ss.pack_graphs([hetero(2, 2) for _ in range(4)], tmp_path / "packed")
    dataset = ss.ShardDataset(tmp_path / "packed", batch_size=4, parts="graph")
    (batch,) = ss.StreamLoader(dataset)
    assert batch["paper"].x.shape == (8, 2)
    assert not made
    assert len(batch.to_data_list()) == 4
    assert len(made) == 2


def test_rules_of_a_subclass_are_kept(tmp_path: Path) -> None:
    graphs = [
        Own(
            x=torch.randn(n, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64),
            anchors=torch.randn(n % 3, 2), link=torch.arange(n), wide=torch.randn(2, n, 3),
            grid=torch.randn(2, 2),
        )
        for n in (1, 2, 3, 4, 5)
    ]  # fmt: skip
    ss.pack_graphs(graphs, tmp_path / "packed", shuffle=False)
    dataset = ss.ShardDataset(tmp_path / "packed", batch_size=5, parts="graph")
    (batch,) = ss.StreamLoader(dataset)
    theirs = Batch.from_data_list(graphs)
    for name in ("link", "wide", "grid", "anchors"):
        assert torch.equal(batch[name], theirs[name]), name


def test_narrow_integers_take_fewer_bytes_and_come_back_as_they_were(tmp_path: Path) -> None:
    graphs = [
        Data(
            x=torch.randint(0, 100, (20, 9)), edge_index=torch.randint(0, 20, (2, 50)),
            far=torch.randint(-(10**scale), 10**scale, (20,)),
        )
        for scale in (1, 2, 4, 9, 15)
    ]  # fmt: skip
    sizes = {}
    for narrow in (False, True):
        path = tmp_path / str(narrow)
        ss.pack_graphs(graphs, path, shuffle=False, narrow=narrow)
        extent = ss.open(path).extent(0, "graph")
        sizes[narrow] = int(extent.size.sum())
        dataset = ss.ShardDataset(path, batch_size=5, parts="graph")
        (batch,) = ss.StreamLoader(dataset)
        assert_same_batches(batch, Batch.from_data_list(graphs))
    assert sizes[True] < 0.4 * sizes[False]


def test_graphs_come_the_same_from_workers_and_from_memory_urls() -> None:
    graphs = [Data(x=torch.randn(n, 2), edge_index=torch.zeros(2, n).long()) for n in range(1, 40)]
    ss.pack_graphs(graphs, "memory://graphs-test", overwrite=True, shuffle=False)
    dataset = ss.ShardDataset("memory://graphs-test", batch_size=7, parts="graph", tail="exact")
    batches = list(ss.StreamLoader(dataset))
    for number, batch in enumerate(batches):
        assert_same_batches(batch, Batch.from_data_list(graphs[number * 7 : number * 7 + 7]))


def test_an_empty_batch_is_a_batch(tmp_path: Path) -> None:
    ss.pack_graphs(
        [Data(x=torch.randn(2, 3), edge_index=torch.zeros(2, 1).long())], tmp_path / "packed"
    )
    dataset = ss.ShardDataset(
        tmp_path / "packed", batch_size=4, parts="graph", tail="exact", world=ss.World(1, 2)
    )
    (batch,) = ss.StreamLoader(dataset)
    assert batch.num_graphs == 0
    assert batch.x.shape == (0, 3)
    assert batch.edge_index.shape == (2, 0)
    assert batch.ptr.tolist() == [0]


def test_one_damaged_graph_is_skipped_and_the_others_are_there(tmp_path: Path) -> None:
    graphs = [Data(x=torch.full((2, 50), float(n))) for n in range(6)]
    ss.pack_graphs(graphs, tmp_path / "packed", shuffle=False)
    tar = tmp_path / "packed" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    offset = int(ss.open(tmp_path / "packed").extent(0, "graph").offset[2])
    data[offset + 300] ^= 1
    tar.write_bytes(data)
    dataset = ss.ShardDataset(
        tmp_path / "packed", batch_size=6, parts=("graph", "__key__"), on_error="skip"
    )
    ((batch, keys),) = ss.StreamLoader(dataset)
    assert keys == ["000000", "000001", "000003", "000004", "000005"]
    assert_same_batches(batch, Batch.from_data_list([graphs[int(key)] for key in keys]))
    dataset = ss.ShardDataset(tmp_path / "packed", batch_size=6, parts="graph")
    with pytest.raises(ss.errors.DamagedError, match="key 000002"):
        list(ss.StreamLoader(dataset))


def test_graph_image_and_tensors_are_one_batch_and_one_block(tmp_path: Path) -> None:
    graphs = [Data(x=torch.randn(n, 2), edge_index=torch.zeros(2, n).long()) for n in range(1, 13)]
    with ss.ShardWriter(tmp_path / "packed") as writer:
        for number, graph in enumerate(graphs):
            image = encoded(picture(30 + number, 40), "JPEG")
            parts = {"graph": graph, "jpg": image, "npy": [number, number + 1], "cls": number % 3}
            writer.write({"__key__": f"{number:03d}", **parts})
    dataset = ss.ShardDataset(
        tmp_path / "packed", batch_size=4, decode={"jpg": ss.CenterCrop(24)}, tail="exact"
    )
    with ss.StreamLoader(dataset, num_workers=2) as loader:
        for number, batch in enumerate(loader):
            rows = range(number * 4, number * 4 + 4)
            assert_same_batches(batch["graph"], Batch.from_data_list([graphs[r] for r in rows]))
            assert batch["jpg"].shape == (4, 3, 24, 24)
            assert batch["npy"].tolist() == [[row, row + 1] for row in rows]
            assert batch["cls"].tolist() == [row % 3 for row in rows]
            storage = batch["jpg"].untyped_storage().data_ptr()
            assert batch["graph"].x.untyped_storage().data_ptr() == storage
            assert batch["npy"].untyped_storage().data_ptr() == storage


@pytest.mark.parametrize("narrow", [True, False])
def test_changes_to_a_graph_survive_pickling_copying_and_moving(
    tmp_path: Path, narrow: bool
) -> None:
    graphs: list[Any] = [Data(x=torch.randint(0, 9, (n, 2))) for n in range(1, 9)]
    ss.pack_graphs(graphs, tmp_path / "packed", shuffle=False, narrow=narrow)
    for parts in (None, ("graph", "__key__")):
        dataset = ss.ShardDataset(tmp_path / "packed", batch_size=8, parts=parts)
        (batch,) = ss.StreamLoader(dataset)
        graph = batch["graph"] if parts is None else batch[0]
        graph.x, graph.more = graph.x.float() / 3, torch.arange(8)
        for copied in (
            pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch), batch.clone(), batch.to("cpu"),
        ):  # fmt: skip
            again = copied["graph"] if parts is None else copied[0]
            assert_same_values(fields(again), fields(graph))
            assert type(copied) is type(batch)


def test_changed_lists_survive_too(tmp_path: Path) -> None:
    ss.pack_graphs([Data(x=torch.zeros(1, 1))] * 3, tmp_path / "packed")
    (batch,) = ss.StreamLoader(ss.ShardDataset(tmp_path / "packed", batch_size=3))
    batch["__key__"][0] = "changed"
    assert pickle.loads(pickle.dumps(batch))["__key__"][0] == "changed"
    assert batch.clone()["__key__"][0] == "changed"


def lonely(nodes: int) -> Data:
    """A graph whose last nodes have no edge."""
    return Data(x=torch.randn(nodes, 2), edge_index=torch.tensor([[0], [0]]), y=torch.randn(1))


@pytest.mark.parametrize("chosen", [("edge_index", "y"), ("y",), ()])
def test_nodes_are_counted_whatever_is_chosen(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    graphs = [lonely(nodes) for nodes in range(2, 8)]
    ss.pack_graphs(graphs, tmp_path / "packed", shuffle=False)
    for transform in (None, dict):
        dataset = ss.ShardDataset(
            tmp_path / "packed", batch_size=6, parts="graph", transform=transform,
            decode={"graph": ss.Graphs(fields=chosen)},
        )  # fmt: skip
        (batch,) = ss.StreamLoader(dataset)
        assert batch.num_nodes == sum(range(2, 8))
        assert [graph.num_nodes for graph in batch.to_data_list()] == list(range(2, 8))
        if "edge_index" in chosen:
            assert torch.equal(batch.edge_index, Batch.from_data_list(graphs).edge_index)


def test_a_transform_s_graphs_are_one_batch_and_move_with_it(tmp_path: Path) -> None:
    graphs = [lonely(nodes) for nodes in range(2, 6)]
    ss.pack_graphs(graphs, tmp_path / "packed", shuffle=False)
    dataset = ss.ShardDataset(tmp_path / "packed", batch_size=4, parts="graph", transform=dict)
    (batch,) = ss.StreamLoader(dataset)
    assert_same_values(fields(batch), fields(Batch.from_data_list(graphs)))
    (batch,) = ss.StreamLoader(dataset, device="meta")
    assert batch.x.device.type == "meta"


def test_narrow_graphs_mix_with_others(tmp_path: Path) -> None:
    graphs = [Data(x=torch.randint(-9, 99, (n, 3)), y=torch.tensor([n])) for n in range(1, 9)]
    urls = {}
    for name, narrow in (("narrow", True), ("wide", False)):
        ss.pack_graphs(graphs, tmp_path / name, shuffle=False, narrow=narrow)
        urls[name] = str(tmp_path / name)
    for order in (urls, dict(reversed(urls.items()))):
        dataset = ss.ShardDataset(ss.Mixture(order), batch_size=8, lanes=1)
        for batch in ss.StreamLoader(dataset):
            expected = [graphs[int(key)] for key in batch["__key__"]]
            assert_same_batches(batch["graph"], Batch.from_data_list(expected))


def test_a_choice_is_of_names_not_of_letters() -> None:
    for how in ("fields", "follow_batch", "exclude_keys"):
        with pytest.raises(UsageError, match="a sequence of names is wanted"):
            ss.Graphs(**{how: "edge_index"})
    assert ss.Graphs(fields=["x"]) == ss.Graphs(fields=("x",))
