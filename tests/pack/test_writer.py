from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamshard as ss
from streamshard.errors import DatasetError, PackError, SampleError, UsageError
from streamshard.pack.size import parse_size
from tests.pack.sources import files_of, read_by_streamshard, tars_of, write_files

SAMPLE_BYTES = 512 + 512  # header and one block of data
END_BYTES = 1024


def write(folder: Path, keys: list[str], **options: Any) -> ss.ShardWriter:
    with ss.ShardWriter(folder, **options) as writer:
        for key in keys:
            writer.write({"__key__": key, "txt": key})
    return writer


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (1, 1),
        ("17", 17),
        (512.0, 512),
        ("64B", 64),
        ("2KB", 2_000),
        ("2k", 2_000),
        ("2MB", 2_000_000),
        (" 1.5 mb ", 1_500_000),
        ("256M", 256_000_000),
        ("1GB", 10**9),
        ("0.5TB", 5 * 10**11),
    ],
)
def test_sizes_are_decimal(size: Any, count: int) -> None:
    assert parse_size(size) == count


@pytest.mark.parametrize("size", [0, -1, "", "MB", "0MB", "0.1", "1MiB", "1e6", "1 000", "-5MB"])
def test_what_is_no_size_is_refused_by_name(size: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(size))):
        parse_size(size)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5_000), min_size=1, max_size=30),
    shard_size=st.integers(1, 12_000),
)
def test_shards_are_as_full_as_the_size_allows_and_no_fuller(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], shard_size: int
) -> None:
    folder = tmp_path_factory.mktemp("roll") / "own"
    with ss.ShardWriter(folder, shard_size=shard_size) as writer:
        for number, size in enumerate(sizes):
            writer.write({"__key__": f"{number:06d}", "bin": bytes(size)})
    in_tar = [512 + -(-size // 512) * 512 for size in sizes]
    table = writer.manifest.table
    first = 0
    for shard in table:
        after = first + shard.samples
        assert shard.nbytes == (folder / shard.name).stat().st_size
        assert shard.nbytes == sum(in_tar[first:after]) + END_BYTES
        assert shard.nbytes <= shard_size or shard.samples == 1
        if after < len(sizes):
            assert shard.nbytes + in_tar[after] > shard_size
        first = after
    assert first == len(sizes) == len(ss.open(str(folder)))


def test_a_sample_larger_than_a_shard_lies_alone_in_one(tmp_path: Path) -> None:
    with ss.ShardWriter(tmp_path / "own", shard_size="10KB") as writer:
        for key, size in (("a", 10), ("large", 50_000), ("b", 10), ("c", 10)):
            writer.write({"__key__": key, "bin": bytes(size)})
    assert [shard.samples for shard in writer.manifest.table] == [1, 1, 2]


def test_the_same_samples_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    keys = [f"{number:03d}" for number in range(40)]
    write(tmp_path / "one", keys, shard_size=9_000, classes=["x", "y"])
    os.utime(tmp_path / "one" / "shard-000000.tar", (1, 1))
    write(tmp_path / "two" / "deeper", keys, shard_size="9KB", classes=["x", "y"])
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two" / "deeper")
    assert sorted(files) == sorted(
        [f"shard-{number:06d}.tar" for number in range(6)]
        + [f".streamshard/shard-{number:06d}.index.safetensors" for number in range(6)]
        + [".streamshard/manifest.json", ".streamshard/shards.safetensors"]
    )


def test_members_are_plain_ustar_without_owner_or_time(tmp_path: Path) -> None:
    write(tmp_path / "own", ["a", "b/c"])
    data = (tmp_path / "own" / "shard-000000.tar").read_bytes()
    assert len(data) == 2 * SAMPLE_BYTES + END_BYTES  # so there is no PAX header between them
    with tarfile.open(tmp_path / "own" / "shard-000000.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["a.txt", "b/c.txt"]
    for member in members:
        facts = member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode
        assert facts == (0, 0, 0, "", "", 0o644)
        assert member.type == tarfile.REGTYPE
        assert not member.pax_headers
        assert data[member.offset + 257 :][:8] == b"ustar\x0000"


def test_nothing_tells_where_or_by_whom_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "own", ["a", "b"])
    names = {str(tmp_path), tmp_path.name, socket.gethostname(), getpass.getuser(), "://"}
    for name, data in files_of(tmp_path / "own").items():
        for word in names:
            assert len(word) < 3 or word.encode() not in data, (name, word)


def test_the_manifest_is_what_lies_on_disk(tmp_path: Path) -> None:
    writer = ss.ShardWriter(tmp_path / "own", shard_size=4_000, classes=["x"])
    with pytest.raises(UsageError, match="not closed yet"):
        assert writer.manifest
    for key in "abcde":
        writer.write({"__key__": key, "txt": key})
    writer.close()
    opened = ss.open(str(tmp_path / "own")).manifest
    assert opened.fingerprint == writer.manifest.fingerprint
    assert opened.classes == ["x"]
    assert opened.parts == writer.manifest.parts
    assert list(opened.table) == list(writer.manifest.table)
    assert [shard.sha256 for shard in opened.table] == [
        hashlib.sha256(path.read_bytes()).digest() for path in tars_of(tmp_path / "own")
    ]


@pytest.mark.parametrize("size", ["1MB", "4KB", "3KB"])  # all in one shard, in two, in three
def test_a_key_that_is_there_twice_is_refused_by_name(tmp_path: Path, size: str) -> None:
    with pytest.raises((SampleError, PackError), match="key 'same' is there twice"):
        write(tmp_path / "own", ["same", "b", "same"], shard_size=size)
    assert not (tmp_path / "own" / ".streamshard" / "manifest.json").exists()
    assert not list((tmp_path / "own").rglob("*.tmp"))


@pytest.mark.parametrize("parts", [{}, {"txt": "a"}, {"txt": "a", "cls": 1, "json": {}}])
def test_every_sample_has_the_parts_of_the_first(tmp_path: Path, parts: dict[str, Any]) -> None:
    writer = ss.ShardWriter(tmp_path / "own")
    writer.write({"__key__": "a", "txt": "a", "cls": 0})
    with pytest.raises(SampleError, match=r"key b .*\['cls', 'txt'\]"):
        writer.write({"__key__": "b", **parts})
    writer.write({"__key__": "c", "cls": 1, "txt": "c"})  # another order is none of its business
    writer.close()
    assert [key for key, _ in read_by_streamshard(str(tmp_path / "own"))] == ["a", "c"]


def test_a_first_sample_without_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="key a: a sample without parts"):
        ss.ShardWriter(tmp_path / "own").write({"__key__": "a"})


def test_a_refused_sample_leaves_the_writer_as_it_was(tmp_path: Path) -> None:
    keys = ["a", "b", "c", "d", "e"]
    write(tmp_path / "clean", keys, shard_size=4_000)
    with ss.ShardWriter(tmp_path / "own", shard_size=4_000) as writer:
        for key in keys:
            writer.write({"__key__": key, "txt": key})
            for bad in ({"__key__": "..", "txt": "x"}, {"__key__": "f", "cls": 1}):
                with pytest.raises(SampleError):
                    writer.write(bad)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "clean")


def test_a_key_that_is_there_twice_leaves_the_writer_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "clean", ["a", "b", "c"], shard_size=3_000)
    with ss.ShardWriter(tmp_path / "own", shard_size=3_000) as writer:  # one sample a shard
        for key in "abc":
            writer.write({"__key__": key, "txt": key})
            with pytest.raises(SampleError, match=f"key '{key}' is there twice"):
                writer.write({"__key__": key, "txt": "x"})
    assert files_of(tmp_path / "own") == files_of(tmp_path / "clean")


def test_an_empty_dataset_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="own: no sample was written"):
        write(tmp_path / "own", [])
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("written", [0, 1, 7])
def test_after_an_error_there_is_no_dataset_and_no_temporary_file(
    tmp_path: Path, written: int
) -> None:
    def fail_after(samples: int) -> None:
        with ss.ShardWriter(tmp_path / "own", shard_size=4_000) as writer:
            for number in range(samples):
                writer.write({"__key__": str(number), "txt": "x"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after(written)
    names = set(files_of(tmp_path))
    assert not any(name.endswith((".tmp", "manifest.json")) for name in names)
    assert len(tars_of(tmp_path / "own")) == max(0, written - 1) // 2  # two fit into each
    for path in tars_of(tmp_path / "own"):
        assert path.read_bytes().endswith(bytes(END_BYTES))
        assert f"own/.streamshard/{path.stem}.index.safetensors" in names
    with pytest.raises(DatasetError):
        ss.open(str(tmp_path / "own"))
    write(tmp_path / "own", ["a"], overwrite=True)
    assert read_by_streamshard(str(tmp_path / "own")) == [("a", {"txt": b"a"})]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "shard-000000.tar", "folder/file"])
def test_a_destination_that_holds_anything_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    write_files(tmp_path / "own", {name: b"mine"})
    with pytest.raises(UsageError, match=rf"own holds {name.partition('/')[0]} .*--overwrite"):
        write(tmp_path / "own", ["a"])
    assert files_of(tmp_path / "own") == {name: b"mine"}


def test_overwrite_replaces_all_of_a_dataset(tmp_path: Path) -> None:
    write(tmp_path / "own", [str(number) for number in range(9)], shard_size=4_000)
    write(tmp_path / "own", ["a", "b"], overwrite=True)
    write(tmp_path / "fresh", ["a", "b"])
    assert files_of(tmp_path / "own") == files_of(tmp_path / "fresh")


@pytest.mark.parametrize("name", ["notes.txt", "train-000.tar", "folder/file", "shard-1.tar"])
def test_overwrite_leaves_alone_what_no_pack_wrote(tmp_path: Path, name: str) -> None:
    write(tmp_path / "own", ["a"])
    write_files(tmp_path / "own", {name: b"mine"})
    before = files_of(tmp_path / "own")
    with pytest.raises(UsageError, match=f"own holds {name.partition('/')[0]}, which no pack"):
        write(tmp_path / "own", ["b"], overwrite=True)
    assert files_of(tmp_path / "own") == before


def test_overwrite_leaves_alone_a_file_of_others_among_the_sidecars(tmp_path: Path) -> None:
    write(tmp_path / "own", ["a"])
    write_files(tmp_path / "own", {".streamshard/notes.txt": b"mine"})
    before = files_of(tmp_path / "own")
    with pytest.raises(UsageError, match=r"notes\.txt, which no pack"):
        write(tmp_path / "own", ["b"], overwrite=True)
    assert files_of(tmp_path / "own") == before


def test_a_dataset_in_memory_has_the_bytes_of_one_on_disk(tmp_path: Path, memory_url: str) -> None:
    keys = [str(number) for number in range(9)]
    write(tmp_path / "own", keys, shard_size=4_000)
    with ss.ShardWriter(memory_url, shard_size=4_000) as writer:
        for key in keys:
            writer.write({"__key__": key, "txt": key})
    assert read_by_streamshard(memory_url) == read_by_streamshard(str(tmp_path / "own"))
    root = memory_url.removeprefix("memory:/")
    store = fsspec.filesystem("memory").store
    found = {
        path.removeprefix(root + "/"): file.getvalue()
        for path, file in store.items()
        if path.startswith(root)
    }
    assert found == files_of(tmp_path / "own")
    with pytest.raises(UsageError, match="--overwrite"):
        ss.ShardWriter(memory_url)
