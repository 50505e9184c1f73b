"""Bytes that are not those that were packed are found, and named by shard, key and offset."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

import streamshard as ss
from streamshard.shard.manifest import index_name


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    with ss.ShardWriter(str(tmp_path / "data"), shard_size="6KB") as writer:
        for number in range(12):
            writer.write({"__key__": f"{number:03d}", "txt": f"text {number} " * 9, "cls": number})
    return tmp_path / "data"


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    ss.pack_graphs(
        [Data(x=torch.randn(n, 2), edge_index=torch.zeros(2, n).long()) for n in range(1, 9)],
        tmp_path / "graphs", shuffle=False,
    )  # fmt: skip
    return tmp_path / "graphs"


def damage(path: Path, offset: int, with_byte: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[offset] = data[offset] ^ 1 if with_byte is None else with_byte
    path.write_bytes(data)


def test_samples_come_by_number_with_keys_and_values(packed: Path) -> None:
    shards = ss.open(str(packed))
    assert len(shards) == 12
    assert len(shards.manifest.table) > 1
    assert shards[7] == {"__key__": "007", "txt": "text 7 " * 9, "cls": 7}
    assert shards[-1]["cls"] == 11
    assert list(shards.keys()) == [f"{number:03d}" for number in range(12)]
    with pytest.raises(IndexError):
        shards[12]


def test_a_flipped_byte_is_named_by_shard_key_and_offset(packed: Path) -> None:
    shards = ss.open(str(packed))
    offset = int(shards.extent(0, "txt").offset[1])
    damage(packed / "shard-000000.tar", offset + 5)
    with pytest.raises(ss.errors.DamagedError) as caught:
        ss.open(str(packed))[1]
    assert f"shard-000000.tar: key 001, part txt at offset {offset}: crc32" in str(caught.value)
    trusting = ss.ShardDataset(packed, batch_size=12, verify=False)
    assert len(next(iter(ss.StreamLoader(trusting)))["txt"]) == 12


def test_a_header_that_is_another_members_is_an_index_out_of_step(packed: Path) -> None:
    damage(packed / "shard-000000.tar", 2, ord("9"))  # 000.txt becomes 009.txt, checksum and all
    with pytest.raises(ss.errors.DamagedError, match="out of step"):
        ss.open(str(packed))[0]


def test_a_truncated_or_longer_shard_is_refused_when_it_is_first_used(packed: Path) -> None:
    shard = packed / "shard-000000.tar"
    whole = shard.read_bytes()
    for data, says in ((whole[:-512], "truncated"), (whole + bytes(512), "longer")):
        shard.write_bytes(data)
        with pytest.raises(ss.errors.DamagedError, match=f"shard-000000.tar: {says}"):
            ss.open(str(packed))[0]


def test_a_missing_shard_is_named(packed: Path) -> None:
    (packed / "shard-000000.tar").unlink()
    with pytest.raises(ss.errors.NotFoundError, match=r"shard-000000\.tar: not found"):
        ss.open(str(packed))[0]


def test_an_index_of_another_shard_is_refused(packed: Path) -> None:
    shutil.copy(packed / index_name("shard-000001.tar"), packed / index_name("shard-000000.tar"))
    with pytest.raises(ss.errors.DamagedError, match="out of step with the manifest"):
        ss.open(str(packed))[0]


def test_a_damaged_graph_shard_is_found_when_it_is_first_opened(graphs: Path) -> None:
    shards = ss.open(str(graphs))
    offset = int(shards.extent(0, "graph").offset[4])
    damage(graphs / "shard-000000.tar", offset + 20)
    loader = ss.StreamLoader(ss.ShardDataset(graphs, batch_size=2))
    with pytest.raises(ss.errors.DamagedError, match="key 000004, part graph"):
        list(loader)
    skipping = ss.StreamLoader(ss.ShardDataset(graphs, batch_size=2, on_error="skip"))
    assert sum(batch["graph"].num_graphs for batch in skipping) == 7, "only the one is left out"


def test_tars_without_an_index_name_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    with pytest.raises(ss.errors.NoIndexError, match="streamshard index"):
        ss.open(str(tmp_path))


def test_a_missing_dataset_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ss.errors.DatasetError, match=str(path)):
            ss.open(str(path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ss.errors.StreamshardError, match="a file, not a folder"):
        ss.open(str(tmp_path / "file"))


def test_a_brace_pattern_is_the_dataset_of_those_shards(packed: Path) -> None:
    whole = ss.open(str(packed))
    some = ss.open(str(packed / "shard-{000001..000002}.tar"))
    begin = int(whole.manifest.table.samples[0])
    assert list(some.keys()) == list(whole.keys())[begin : begin + len(some)]
    assert some.manifest.fingerprint != whole.manifest.fingerprint
    with pytest.raises(ss.errors.DatasetError, match=r"shard-000099\.tar"):
        ss.open(str(packed / "shard-000099.tar"))


def test_a_reader_pickles_and_opens_its_files_anew(packed: Path) -> None:
    shards = ss.open(str(packed))
    expected = shards[3]
    assert pickle.loads(pickle.dumps(shards))[3] == expected


def test_few_files_are_open_however_many_shards_there_are(tmp_path: Path) -> None:
    with ss.ShardWriter(str(tmp_path / "data"), shard_size=2048) as writer:
        for number in range(150):
            writer.write({"__key__": f"{number:03d}", "txt": "x" * 900})
    shards = ss.open(str(tmp_path / "data"))
    assert len(shards.manifest.table) == 150
    before = len(os.listdir("/proc/self/fd"))
    for number in range(150):
        shards[number]
    assert len(os.listdir("/proc/self/fd")) - before <= 90
    del shards
    assert len(os.listdir("/proc/self/fd")) <= before
