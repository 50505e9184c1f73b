"""Tars that can't be indexed, each refused by its name."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import streamshard as ss
from streamshard.codec.tensor import encode_tensors
from streamshard.errors import DamagedError, PackError, SampleError, StreamshardError
from tests.pack.sources import files_of, write_tar

MEMBERS = [("a.txt", b"a" * 600), ("b.txt", b"b" * 600), ("c.txt", b"c" * 600)]


def refused(folder: Path, kind: type[Exception], reason: str, **options: Any) -> None:
    """Indexing ends with this error, and nothing that could be opened is left."""
    with pytest.raises(kind, match=reason):
        ss.index_tars(folder, **options)
    assert not any(name.endswith((".tmp", "manifest.json")) for name in files_of(folder))


def test_a_key_that_comes_back_later_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.txt", b""), ("b.txt", b""), ("a.cls", b"1")])
    refused(tmp_path, DamagedError, r"x\.tar: key a comes back at offset")


@pytest.mark.parametrize("again", ["a.txt", "a.TXT"])
def test_a_part_that_is_there_twice_is_refused(tmp_path: Path, again: str) -> None:
    write_tar(tmp_path / "x.tar", [("a.txt", b""), (again, b"")])
    refused(tmp_path, DamagedError, r"x\.tar: key a has the part txt twice")


def test_a_tar_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", MEMBERS, tarfile.USTAR_FORMAT).read_bytes()
    end = 3 * (512 + 1024)  # of the members; zero blocks follow
    for cut in [*range(0, end, 100), *range(512, end, 512), end, end + 512, end + 1023]:
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        refused(tmp_path, DamagedError, r"x\.tar: ")


def test_no_damaged_header_byte_goes_by_unseen(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", MEMBERS, tarfile.USTAR_FORMAT).read_bytes()
    second = 512 + 1024
    for at in range(second, second + 512):
        if at == second + 155:  # the blank behind the checksum, which says nothing
            continue
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        (tmp_path / "x.tar").write_bytes(damaged)
        refused(tmp_path, DamagedError, r"x\.tar: ")


@pytest.mark.parametrize(
    "compressed", [gzip.compress(b"x" * 5_000, mtime=0), b"no tar " * 1_000, b""]
)
def test_what_is_no_plain_tar_is_refused_by_name(tmp_path: Path, compressed: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(compressed)
    refused(tmp_path, DamagedError, r"x\.tar: ")


def test_a_compressed_tar_says_what_to_do(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", MEMBERS)
    (tmp_path / "x.tar").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    refused(tmp_path, DamagedError, r"x\.tar: gzip-compressed.*gunzip")


@pytest.mark.parametrize(
    "type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE], ids=str
)
def test_a_link_or_device_is_refused(tmp_path: Path, type: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        good = tarfile.TarInfo("a.txt")
        archive.addfile(good, io.BytesIO())
        member = tarfile.TarInfo("b.txt")
        member.type, member.linkname = type, "/etc/passwd"
        archive.addfile(member)
    refused(tmp_path, DamagedError, r"x\.tar: member 'b\.txt' .* link, a device")


@pytest.mark.parametrize("members", [[], [("README", b"x")], [("__meta__/a.json", b"{}")]])
def test_a_tar_without_samples_is_refused(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    write_tar(tmp_path / "x.tar", members)
    refused(tmp_path, DamagedError, r"x\.tar: no sample")


@pytest.mark.parametrize("data", [b"three", b"", b"1.5", b"%d" % 2**63])
def test_a_class_that_is_no_integer_is_named(tmp_path: Path, data: bytes) -> None:
    write_tar(tmp_path / "x.tar", [("a.cls", b"1"), ("b.cls", data)])
    refused(tmp_path, SampleError, r"x\.tar: key b, part cls at offset \d+: ")


def graph(**fields: torch.Tensor) -> bytes:
    return encode_tensors({"num_nodes": torch.tensor(2), **fields})


@pytest.mark.parametrize(
    "other",
    [
        b"no tensors",
        graph(x=torch.zeros(2, 4)),
        graph(x=torch.zeros(2, 3).double()),
        graph(x=torch.zeros(2, 3), z=torch.zeros(2)),
        graph(x=torch.zeros(2, 3).fill_(torch.inf)),
    ],
    ids=["bytes", "width", "dtype", "field", "infinity"],
)
def test_a_graph_that_batches_can_not_hold_is_named(tmp_path: Path, other: bytes) -> None:
    first = graph(x=torch.zeros(2, 3))
    members = [("a.graph.safetensors", first), ("b.graph.safetensors", other)]
    write_tar(tmp_path / "x.tar", members)
    refused(tmp_path, SampleError, r"x\.tar: key b, part graph")


def test_a_sample_with_two_parts_of_one_name_in_batches_is_refused(tmp_path: Path) -> None:
    data = graph(x=torch.zeros(2, 3))
    write_tar(tmp_path / "x.tar", [("a.graph", b"x"), ("a.graph.safetensors", data)])
    refused(tmp_path, StreamshardError, r"x\.tar: key a.* graph")


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("nowhere", r"nowhere/\*\.tar"),
        ("nowhere/x.tar", r"nowhere/x\.tar"),
        ("y.tar", r"y\.tar"),
        ("x-{0..2}.tar", r"x-1\.tar"),
        ("y-*.tar", r"y-\*\.tar"),
        ("x-{0.tar", r"x-\{0\.tar"),
        ("x-0.tgz", r"x-0\.tgz"),
    ],
)
def test_a_pattern_without_tars_is_named(tmp_path: Path, pattern: str, named: str) -> None:
    for number in (0, 2):
        write_tar(tmp_path / f"x-{number}.tar", MEMBERS)
    (tmp_path / "x-0.tgz").write_bytes(b"x")
    with pytest.raises(StreamshardError, match=named):
        ss.index_tars(tmp_path / pattern)
    assert not (tmp_path / ".streamshard").exists()


def test_tars_that_have_an_index_are_refused_and_keep_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", MEMBERS)
    ss.index_tars(tmp_path)
    before = files_of(tmp_path)
    for out in (None, str(tmp_path)):
        with pytest.raises(PackError, match=f"{tmp_path} has an index already; remove "):
            ss.index_tars(tmp_path / "x.tar", out=out)
    assert files_of(tmp_path) == before


def test_the_remedy_that_an_existing_index_is_told_with_works(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", MEMBERS)
    ss.index_tars(tmp_path)
    (tmp_path / ".streamshard" / "manifest.json").unlink()
    write_tar(tmp_path / "x.tar", MEMBERS[:2])
    assert ss.index_tars(tmp_path).samples == 2
    assert len(ss.open(str(tmp_path))) == 2


def test_a_tar_that_changed_after_indexing_is_told_from_the_one_that_was(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", MEMBERS)
    ss.index_tars(tmp_path)
    other = [("c.txt", b"c" * 600), ("b.txt", b"b" * 600), ("a.txt", b"a" * 600)]
    write_tar(tmp_path / "x.tar", other)  # of the same size
    shards = ss.open(str(tmp_path))
    with pytest.raises(DamagedError, match=r"x\.tar: key a, part txt at offset .*out of step"):
        shards[0]
    assert shards[1]["txt"] == "b" * 600
    assert any("key c" in finding for finding in shards.find_damage())
