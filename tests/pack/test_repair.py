"""Sidecars lost, damaged or out of step, put right; tars that changed, told and not blessed."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from torch_geometric.data import Data

import streamshard as ss
from streamshard.errors import StreamshardError, UsageError
from streamshard.pack.repair import repair
from streamshard.shard import tar
from streamshard.shard.manifest import FOLDER, HEAD, TABLE, index_name
from streamshard.shard.sizes import SIZES
from tests.pack.sources import class_folders, files_of, image_bytes, ring, tars_of, write_tar

INDEX = index_name("shard-000001.tar")


class Pair(Data):  # type: ignore[misc]
    """Two graphs in one, with rules of their own."""

    def __inc__(self, key: str, value: object, *args: object, **kwargs: object) -> object:
        if key == "index_s":
            return self.x_s.shape[0]
        return super().__inc__(key, value)


def own(folder: Path) -> None:
    with ss.ShardWriter(folder, shard_size="12KB") as writer:
        for number in range(12):
            sample = {"bin": bytes([number]) * (300 + 37 * number), "cls": number % 3}
            writer.write({"__key__": f"{number:04d}", "png": image_bytes(seed=number), **sample})


def graphs(folder: Path) -> None:
    ss.pack_graphs([ring(n, y=torch.ones(1)) for n in range(2, 14)], folder, shard_size=4000)


def odd_graphs(folder: Path) -> None:
    """What a codec refuses unless it is told to allow it, and integers that were narrowed."""
    some = [ring(n, y=torch.tensor([300 * n])) for n in range(2, 12)]
    some += [
        Data(x=torch.full((n, 3), float("nan")), edge_index=some[0].edge_index[:, :0], y=some[0].y)
        for n in (0, 1)
    ]
    ss.pack_graphs(some, folder, shard_size=4000, narrow=True, allow_empty=True, allow_nan=True)


def pairs(folder: Path) -> None:
    some = [
        Pair(x=torch.rand(3, 2), x_s=torch.rand(n, 2), index_s=torch.arange(n))
        for n in range(1, 13)
    ]
    ss.pack_graphs(some, folder, shard_size=4000)


def foreign(folder: Path) -> None:
    """Parts that come later, samples that lack one, and a part that can't be decoded."""
    write_tar(folder / "a.tar", [("1.txt", b"x"), ("2.txt", b"y"), ("2.jpg", b"no image")])
    write_tar(folder / "b.tar", [("3.jpg", image_bytes("JPEG")), ("3.cls", b"7"), ("4.txt", b"z")])
    write_tar(folder / "c.tar", [("5.txt", b"v")])
    ss.index_tars(folder)


ALL = [own, graphs, odd_graphs, pairs, foreign]


def whole(folder: Path) -> bool:
    return not list(ss.open(folder).find_damage(decode=folder.name != "foreign"))


def sidecars(folder: Path) -> list[str]:
    return [name for name in files_of(folder) if name.startswith(FOLDER)]


@pytest.mark.parametrize("make", ALL)
def test_each_sidecar_lost_or_damaged_alone_comes_back_byte_for_byte(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / make.__name__
    make(folder)
    before = files_of(folder)
    assert repair(folder).done == repair(folder).left == []
    for name in sidecars(folder):
        for damage in (None, before[name][:-9], b"nonsense"):
            if make in (odd_graphs, pairs) and name == HEAD:
                continue  # see below
            if make is pairs and name.endswith("index.safetensors"):
                continue
            (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
            done = repair(folder)
            assert done.left == []
            assert [line.partition(": ")[0] for line in done.done] == [f"{folder}/{name}"]
            assert done.fingerprint == done.was
            after = files_of(folder)
            kept = after.pop(f"{FOLDER}/manifest.damaged.json", None)
            assert kept == (damage if name == HEAD else None)
            (folder / FOLDER / "manifest.damaged.json").unlink(missing_ok=True)
            assert after == before, name
    assert whole(folder)


@pytest.mark.parametrize("make", ALL)
def test_all_but_the_manifest_comes_back_byte_for_byte(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "set"
    make(folder)
    before = files_of(folder)
    for name in sidecars(folder):
        if name != HEAD:
            (folder / name).unlink()
    done = repair(folder)
    if make is pairs:
        assert "can't be proven to follow" in done.left[0]
        assert done.done == []
        return
    assert done.left == []
    assert files_of(folder) == before


@pytest.mark.parametrize("make", [own, graphs, foreign])
def test_without_any_sidecar_it_is_what_index_makes(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "set")
    before = files_of(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / FOLDER)
    done = repair(tmp_path / "set")
    assert done.left == []
    assert files_of(tmp_path / "set") == before
    assert any("class names" in note for note in done.notes) == (make is not graphs)


def test_class_names_are_lost_with_the_manifest_and_that_is_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos")
    ss.pack_images(tmp_path / "photos", tmp_path / "set")
    fingerprint = ss.open(tmp_path / "set").manifest.fingerprint
    (tmp_path / "set" / HEAD).unlink()
    done = repair(tmp_path / "set")
    assert done.fingerprint == done.was == fingerprint
    assert done.notes == [
        "class names, if there were any, stood in the manifest only: they are lost"
    ]
    assert ss.open(tmp_path / "set").classes is None


@pytest.mark.parametrize("make", [odd_graphs, pairs])
def test_graphs_whose_rules_stood_in_the_manifest_only_are_refused_without_it(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "set")
    (tmp_path / "set" / HEAD).unlink()
    before = files_of(tmp_path / "set")
    for accept in (False, True):
        done = repair(tmp_path / "set", accept_changes=accept)
        assert all("shard-0000" in line for line in done.left)
        reason = "pack them again" if make is pairs else "edge_index is torch.uint8"
        assert reason in done.left[0]
        assert files_of(tmp_path / "set") == before


def test_rules_of_a_class_are_never_guessed_for_an_index(tmp_path: Path) -> None:
    pairs(tmp_path / "set")
    (tmp_path / "set" / INDEX).unlink()
    (left,) = repair(tmp_path / "set").left
    assert left.startswith(f"{tmp_path}/set/shard-000001.tar: what the index told of its graphs")
    assert not (tmp_path / "set" / INDEX).exists()


def flipped(folder: Path, where: str) -> Path:
    """The middle shard with one byte changed."""
    shards = ss.open(folder)
    path = folder / shards.manifest.table[1].name
    offset, size = (int(column[1]) for column in shards.extent(1, "bin")[:2])
    assert tar.padding(size)
    data = bytearray(path.read_bytes())
    at = {
        "data": offset + size - 1,
        "name": offset - tar.BLOCK,
        "padding": offset + size,
        "end": len(data) - 1,
    }[where]
    data[at] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("where", ["data", "padding"])
@pytest.mark.parametrize("lost", [None, INDEX, TABLE, HEAD])
def test_bytes_that_changed_are_told_and_taken_only_when_accepted(
    tmp_path: Path, where: str, lost: str | None
) -> None:
    own(tmp_path / "set")
    was = ss.open(tmp_path / "set").manifest.fingerprint
    path = flipped(tmp_path / "set", where)
    if lost:
        (tmp_path / "set" / lost).unlink()
    before = files_of(tmp_path / "set")
    refused = repair(tmp_path / "set")
    assert files_of(tmp_path / "set") == before
    assert refused.done == []
    assert "--accept-changes" in refused.left[-1]
    if lost == TABLE:
        tells = "nothing tells which" if where == "padding" else f"their indexes: {path.name}"
        assert tells in refused.left[0]
    else:
        assert refused.left[0].startswith(f"{path}: not what was packed: ")
    if lost in (None, HEAD):
        told = "1 changed (0" if where == "data" else "headers or padding"
        assert told in refused.left[0]
    done = repair(tmp_path / "set", accept_changes=True)
    assert done.left == []
    assert done.was == was != done.fingerprint == ss.open(tmp_path / "set").manifest.fingerprint
    assert whole(tmp_path / "set")
    assert files_of(tmp_path / "set")[path.name] == before[path.name]


@pytest.mark.parametrize("where", ["name", "end", "cut", "gone"])
@pytest.mark.parametrize("accept", [False, True])
def test_nothing_is_rebuilt_from_a_tar_that_is_not_whole(
    tmp_path: Path, where: str, accept: bool
) -> None:
    own(tmp_path / "set")
    path = tars_of(tmp_path / "set")[1]
    if where == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif where == "gone":
        path.unlink()
    else:
        flipped(tmp_path / "set", where)
    first = index_name(tars_of(tmp_path / "set")[0].name)
    (tmp_path / "set" / INDEX).unlink()
    before = files_of(tmp_path / "set")
    data = before.pop(first)
    (tmp_path / "set" / first).unlink()
    done = repair(tmp_path / "set", accept_changes=accept)
    assert [line.startswith(f"{path}: ") for line in done.left] == [True]
    assert files_of(tmp_path / "set") == {**before, first: data}, "what is as it was comes back"


@pytest.mark.parametrize("lost", [None, TABLE, HEAD])
def test_swapped_shards_are_told_by_what_they_hold(tmp_path: Path, lost: str | None) -> None:
    own(tmp_path / "set")
    one, other = tars_of(tmp_path / "set")[:2]
    one.rename(tmp_path / "x")
    other.rename(one)
    (tmp_path / "x").rename(other)
    if lost:
        (tmp_path / "set" / lost).unlink()
    done = repair(tmp_path / "set")
    assert done.left
    if lost != TABLE:
        assert done.left[0].endswith(f"it holds what {other.name} was packed with")
        assert done.left[1].endswith(f"it holds what {one.name} was packed with")
    assert repair(tmp_path / "set", accept_changes=True).left == []
    assert whole(tmp_path / "set")


@pytest.mark.parametrize("lost", [None, INDEX, TABLE, HEAD])
def test_a_tar_of_others_is_left_alone(tmp_path: Path, lost: str | None) -> None:
    own(tmp_path / "set")
    before = files_of(tmp_path / "set")
    write_tar(tmp_path / "set" / "other.tar", [("a.txt", b"x")])
    if lost:
        (tmp_path / "set" / lost).unlink()
    done = repair(tmp_path / "set")
    assert done.left == []
    assert f"{tmp_path}/set/other.tar: not of this dataset; left alone" in done.notes
    (tmp_path / "set" / "other.tar").unlink()
    assert files_of(tmp_path / "set") == before


def test_a_stale_index_is_replaced(tmp_path: Path) -> None:
    own(tmp_path / "set")
    before = files_of(tmp_path / "set")
    shutil.copy(tmp_path / "set" / index_name("shard-000000.tar"), tmp_path / "set" / INDEX)
    assert repair(tmp_path / "set").left == []
    assert files_of(tmp_path / "set") == before


def test_a_pack_that_was_not_finished_is_not_taken_for_a_dataset(tmp_path: Path) -> None:
    own(tmp_path / "set")
    for name in (HEAD, TABLE):
        (tmp_path / "set" / name).unlink()
    (left,) = repair(tmp_path / "set").left
    assert "not finished" in left
    assert not (tmp_path / "set" / HEAD).exists()
    assert repair(tmp_path / "set", accept_changes=True).left == []
    assert whole(tmp_path / "set")


def test_tars_without_sidecars_that_are_not_whole_leave_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.txt", b"x")])
    (tmp_path / "b.tar").write_bytes(b"x" * 600)
    (left,) = repair(tmp_path).left
    assert left.startswith(f"{tmp_path}/b.tar: ")
    assert sidecars(tmp_path) == []


def test_sidecars_elsewhere_are_repaired_there(tmp_path: Path) -> None:
    foreign(tmp_path / "set")
    shutil.move(tmp_path / "set" / FOLDER, tmp_path / "index" / FOLDER)
    before = files_of(tmp_path / "index")
    (tmp_path / "index" / TABLE).unlink()
    assert repair(tmp_path / "set", index=str(tmp_path / "index")).left == []
    assert files_of(tmp_path / "index") == before
    assert sidecars(tmp_path / "set") == []
    with pytest.raises(UsageError, match="whole"):
        repair(tmp_path / "set" / "a.tar", index=str(tmp_path / "index"))


def test_a_dataset_in_memory_is_repaired(tmp_path: Path, memory_url: str) -> None:
    graphs(tmp_path / "graphs")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "graphs"), memory_url, recursive=True)
    memory.rm(f"{memory_url}/{SIZES}")
    done = repair(memory_url)
    assert (len(done.done), done.left) == (1, [])
    assert memory.cat(f"{memory_url}/{SIZES}") == (tmp_path / "graphs" / SIZES).read_bytes()


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 30))]
)
def test_a_repair_that_is_killed_leaves_what_reads_right_or_is_refused(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    own(tmp_path / "set")
    accept = seed % 2 == 1
    if accept:
        flipped(tmp_path / "set", "padding")
    shards = ss.open(tmp_path / "set")
    expected = [shards[row]["bin"] for row in range(len(shards))]
    for name in sidecars(tmp_path / "set"):
        if name != HEAD and chance.random() < 0.8:
            (tmp_path / "set" / name).unlink()
    shutil.copytree(tmp_path / "set", tmp_path / "twin")
    assert repair(tmp_path / "twin", accept_changes=True).left == []
    for _ in range(3):
        process = multiprocessing.get_context("fork").Process(
            target=repair, args=(tmp_path / "set",), kwargs={"accept_changes": accept}
        )
        process.start()
        time.sleep(chance.uniform(0, 0.06))
        process.kill()
        process.join()
        reads_right_or_is_refused(tmp_path / "set", expected)
    assert repair(tmp_path / "set", accept_changes=accept).left == []
    for name, data in files_of(tmp_path / "twin").items():
        assert (tmp_path / "set" / name).read_bytes() == data


def reads_right_or_is_refused(folder: Path, expected: list[bytes]) -> None:
    try:
        shards = ss.open(folder)
    except StreamshardError:
        return
    assert len(shards) == len(expected)
    for row, data in enumerate(expected):
        with contextlib.suppress(StreamshardError):
            assert shards[row]["bin"] == data
