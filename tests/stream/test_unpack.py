"""Samples back to files, and single keys found by the indexes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamshard as ss
from streamshard.errors import DamagedError, DatasetError, NoIndexError, UsageError
from streamshard.pack.index import index_tars
from streamshard.shard.columns import Strings
from streamshard.stream.keys import find, find_part, near, row_of
from streamshard.stream.unpack import unpack
from tests.pack.sources import (
    class_folders,
    files_of,
    read_by_streamshard,
    ring,
    tars_of,
    write_files,
    write_tar,
)
from tests.shard.tars import one_of_type


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Images in several shards."""
    class_folders(tmp_path / "photos")
    ss.pack_images(tmp_path / "photos", tmp_path / "own", shard_size=6_000)
    assert len(tars_of(tmp_path / "own")) > 2
    return tmp_path / "own"


def test_images_that_were_packed_come_back_in_the_same_bytes(own: Path, tmp_path: Path) -> None:
    done = unpack(own, tmp_path / "out")
    found = files_of(tmp_path / "out")
    images = {name: data for name, data in found.items() if not name.endswith(".cls")}
    assert images == files_of(tmp_path / "photos")
    labels = {name: data for name, data in found.items() if name.endswith(".cls")}
    assert labels == {
        f"{name}/{number}.cls": b"%d" % label
        for label, name in enumerate(("ant", "bee", "cat"))
        for number in range(5)
    }
    assert (done.samples, done.files) == (15, 30)
    assert done.bytes == sum(map(len, found.values()))


def test_what_is_unpacked_and_packed_again_is_the_same_dataset(own: Path, tmp_path: Path) -> None:
    unpack(own, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.cls"):
        path.unlink()
    ss.pack_images(tmp_path / "out", tmp_path / "again", shard_size=6_000)
    assert files_of(tmp_path / "again") == files_of(own)


def test_graphs_come_back_as_the_parts_that_were_packed(tmp_path: Path) -> None:
    ss.pack_graphs([ring(n, name="x") for n in range(1, 9)], tmp_path / "own", shard_size=9_000)
    unpack(tmp_path / "own", tmp_path / "out")
    assert files_of(tmp_path / "out") == {
        f"{key}.{suffix}": data
        for key, parts in read_by_streamshard(str(tmp_path / "own"))
        for suffix, data in parts.items()
    }


def test_tars_of_others_come_back_without_the_parts_that_a_sample_lacks(tmp_path: Path) -> None:
    files = [("./a.txt", b""), ("./a.cls", b"3"), ("d.d/ö b.txt", b"x" * 700), ("e/.txt", b"y")]
    write_tar(tmp_path / "own" / "x.tar", files)
    index_tars(tmp_path / "own")
    unpack(tmp_path / "own", tmp_path / "out")
    assert files_of(tmp_path / "out") == {name.removeprefix("./"): data for name, data in files}


def test_some_keys_are_unpacked(own: Path, tmp_path: Path) -> None:
    done = unpack(own, tmp_path / "out", keys=["ant/*", "cat/3", "bee/[12]"])
    keys = {name.partition(".")[0] for name in files_of(tmp_path / "out")}
    assert keys == {*(f"ant/{number}" for number in range(5)), "cat/3", "bee/1", "bee/2"}
    assert done.samples == 8


def test_a_key_that_nothing_has_is_named_before_anything_is_written(
    own: Path, tmp_path: Path
) -> None:
    for missing in ("dog/*", "ant/77"):
        with pytest.raises(DatasetError, match=missing.replace("*", r"\*")):
            unpack(own, tmp_path / "out", keys=["ant/1", missing])
    assert not (tmp_path / "out").exists()


def test_files_that_are_there_are_kept_unless_asked_otherwise(own: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "out", {"cat/3.cls": b"mine", "notes.txt": b"mine too"})
    with pytest.raises(UsageError, match=r"cat/3\.cls is there already; --overwrite"):
        unpack(own, tmp_path / "out")
    assert files_of(tmp_path / "out") == {"cat/3.cls": b"mine", "notes.txt": b"mine too"}
    unpack(own, tmp_path / "out", overwrite=True)
    assert len(files_of(tmp_path / "out")) == 31
    assert (tmp_path / "out" / "cat" / "3.cls").read_bytes() == b"2"


@pytest.mark.parametrize(
    "name", ["../up.txt", "/abs.txt", "a/../../up.txt", "a/..", "..txt/../../b.txt", "x/../b.txt"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_names_that_lead_out_are_refused_and_nothing_is_written(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    name = f"{tmp_path}{name}" if name.startswith("/") else name
    write_tar(tmp_path / "own" / "x.tar", [("fine.txt", b"1"), (name, b"2"), ("last.txt", b"3")])
    index_tars(tmp_path / "own")
    before = files_of(tmp_path)
    with pytest.raises(DatasetError, match=r"x\.tar: key .* leads out of the folder") as refused:
        unpack(tmp_path / "own", tmp_path / "out", overwrite=overwrite)
    assert name in str(refused.value)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused_by_name_before_there_is_a_dataset(
    tmp_path: Path, kind: bytes
) -> None:
    write_files(tmp_path / "own", {"x.tar": one_of_type(kind)})
    with pytest.raises(DamagedError, match=r"'b\.bin' .* is a link, a device or sparse"):
        index_tars(tmp_path / "own")
    with pytest.raises(NoIndexError):
        unpack(tmp_path / "own", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_link_in_the_folder_leads_out_of_it(own: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bee").symlink_to(tmp_path / "outside")
    with pytest.raises(DatasetError, match=r"'bee/\d\.png' leads out of the folder, to "):
        unpack(own, tmp_path / "out", overwrite=overwrite)
    assert files_of(tmp_path / "outside") == {}
    assert files_of(tmp_path / "out") == {}


def test_a_file_that_is_a_link_is_replaced_and_not_followed(own: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"outside.txt": b"mine"})
    (tmp_path / "out" / "bee").mkdir(parents=True)
    (tmp_path / "out" / "bee" / "1.cls").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(UsageError, match=r"bee/1\.cls is there already"):
        unpack(own, tmp_path / "out")
    unpack(own, tmp_path / "out", overwrite=True)
    assert (tmp_path / "outside.txt").read_bytes() == b"mine"
    assert not (tmp_path / "out" / "bee" / "1.cls").is_symlink()


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_names_that_are_one_file_are_refused(tmp_path: Path, overwrite: bool) -> None:
    write_tar(tmp_path / "own" / "x.tar", [("d/a.txt", b"1"), ("b.txt", b"2"), ("d//a.txt", b"3")])
    index_tars(tmp_path / "own")
    with pytest.raises(DatasetError, match=r"'d/a\.txt' and 'd//a\.txt' of the dataset are one"):
        unpack(tmp_path / "own", tmp_path / "out", overwrite=overwrite)
    assert not (tmp_path / "out").exists()


def test_damaged_bytes_are_not_written(own: Path, tmp_path: Path) -> None:
    path = tars_of(own)[2]
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"shard-000002\.tar: key .* crc32 differs"):
        unpack(own, tmp_path / "out")
    source = files_of(tmp_path / "photos")
    for name, found in files_of(tmp_path / "out").items():
        assert name.endswith(".cls") or source[name] == found
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_url_is_no_place_to_unpack_to(own: Path) -> None:
    with pytest.raises(UsageError, match=r"^s3://bucket/out: .* local folder") as refused:
        unpack(own, "s3://me:secret@bucket/out?token=secret")
    assert "secret" not in str(refused.value)


def test_every_key_and_part_is_found(own: Path) -> None:
    shards = ss.open(str(own))
    for number, key in enumerate(shards.keys()):
        assert find(shards, key) == shards.locate(number)
        assert find_part(shards, key) == (*shards.locate(number), None)
        for part in ("png", "cls"):
            assert find_part(shards, f"{key}.{part}") == (*shards.locate(number), part)


def test_a_graph_is_found_by_its_part_and_by_its_suffix(tmp_path: Path) -> None:
    ss.pack_graphs([ring(1), ring(2)], tmp_path / "own")
    shards = ss.open(str(tmp_path / "own"))
    for name in ("graph", "graph.safetensors"):
        assert find_part(shards, f"000001.{name}")[2] == "graph"


def test_keys_are_found_without_a_tar(own: Path) -> None:
    shards = ss.open(str(own))
    keys = list(shards.keys())
    for path in tars_of(own):
        path.unlink()
    shards = ss.open(str(own))
    assert [find(shards, key) for key in keys] == [shards.locate(row) for row in range(15)]
    assert find(shards, "ant") is None


def test_near_keys_are_named(own: Path) -> None:
    shards = ss.open(str(own))
    assert set(near(shards, "ant/7")) < {f"ant/{number}" for number in range(5)}
    assert near(shards, "cats/3")[0] == "cat/3"
    assert near(shards, "Bee/3")[0] == "bee/3"
    assert near(shards, "something else") == near(shards, "") == []
    with pytest.raises(DatasetError, match=r"own: no key 'cats/3'; near it: cat/3, "):
        find_part(shards, "cats/3.png")
    with pytest.raises(DatasetError, match=r"own: no key ''; `streamshard ls` lists them"):
        find_part(shards, "")
    with pytest.raises(DatasetError, match=r"key cat/3 has no part 'jpg', only png, cls"):
        find_part(shards, "cat/3.jpg")


@given(keys=st.lists(st.text("abö", max_size=4)), wanted=st.text("abö", max_size=4))
def test_the_row_of_a_key_is_that_of_a_list(keys: list[str], wanted: str) -> None:
    found = row_of(Strings.of(keys), wanted)
    assert found == (keys.index(wanted) if wanted in keys else None)


def test_a_million_keys_are_looked_through_at_once() -> None:
    keys = Strings.of([f"{number:09d}" for number in range(1_000_000)])
    assert row_of(keys, "000765432") == 765_432
    assert row_of(keys, "001765432") is None
    assert row_of(Strings(np.zeros(0, np.uint8), np.zeros(0, np.int64)), "a") is None
