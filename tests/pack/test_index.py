"""Tars that others wrote, read through sidecars; the tars stay as they are."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from webdataset import ShardWriter, TarWriter

import streamshard as ss
from streamshard.errors import NoIndexError
from tests.pack.sources import (
    Samples,
    files_of,
    image_bytes,
    read_by_streamshard,
    read_by_webdataset,
    ring,
    tars_of,
    write_tar,
)


def webdataset_tars(folder: Path, samples: int = 20, per_shard: int = 7) -> Samples:
    """Shards by webdataset's own writer, and what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    written: Samples = []
    pattern = str(folder / "train-%04d.tar")
    with ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for number in range(samples):
            parts: dict[str, Any] = {
                "cls": number % 3,
                "jpg": image_bytes("JPEG", seed=number),
                "json": {"number": number},
            }
            writer.write({"__key__": f"photo/{number:05d}", **parts})
            encoded = {"cls": b"%d" % parts["cls"], "json": b'{"number": %d}' % number}
            written.append((f"photo/{number:05d}", {**parts, **encoded}))
    return written


def as_sets(samples: Samples) -> list[tuple[str, set[tuple[str, bytes]]]]:
    """Without the order of a sample's parts."""
    return [(key, set(parts.items())) for key, parts in samples]


def test_what_webdataset_wrote_is_read_with_equal_bytes_and_keys(tmp_path: Path) -> None:
    written = webdataset_tars(tmp_path / "own")
    assert len(tars_of(tmp_path / "own")) == 3
    with tarfile.open(tars_of(tmp_path / "own")[0]) as archive:
        assert all(member.pax_headers for member in archive)  # a PAX header for every member
    ss.index_tars(tmp_path / "own")
    found = read_by_streamshard(str(tmp_path / "own"))
    assert as_sets(found) == as_sets(written) == as_sets(read_by_webdataset(tmp_path / "own"))
    shards = ss.open(str(tmp_path / "own"))
    assert not list(shards.find_damage())
    sample = shards[17]
    assert sample["__key__"] == "photo/00017"
    assert sample["cls"] == 2
    assert sample["json"] == {"number": 17}
    assert (sample["jpg"].dtype, sample["jpg"].shape) == (torch.uint8, (3, 7, 9))


def test_indexing_does_not_touch_the_tars(tmp_path: Path) -> None:
    webdataset_tars(tmp_path / "own")
    before = {path.name: (path.read_bytes(), path.stat()) for path in tars_of(tmp_path / "own")}
    ss.index_tars(tmp_path / "own")
    for path in tars_of(tmp_path / "own"):
        data, stat = before[path.name]
        now = path.stat()
        assert path.read_bytes() == data
        assert (now.st_mtime_ns, now.st_ino) == (stat.st_mtime_ns, stat.st_ino)
    added = set(files_of(tmp_path / "own")) - set(before)
    assert all(name.startswith(".streamshard/") for name in added)


def test_a_summary_tells_what_was_found(tmp_path: Path) -> None:
    webdataset_tars(tmp_path / "own")
    calls: list[tuple[int, int | None, int]] = []
    summary = ss.index_tars(tmp_path / "own", progress=lambda *call: calls.append(call))
    size = sum(path.stat().st_size for path in tars_of(tmp_path / "own"))
    assert (summary.samples, summary.shards, summary.bytes) == (20, 3, size)
    assert (summary.skipped, summary.notes) == ([], [])
    assert summary.fingerprint == ss.open(str(tmp_path / "own")).manifest.fingerprint
    assert summary.seconds > 0
    assert [samples for samples, _, _ in calls] == [7, 14, 20]
    assert calls[-1][2] == size


@pytest.mark.parametrize(
    ("pattern", "shards"),
    [
        ("", ["0000", "0001", "0002"]),
        ("/", ["0000", "0001", "0002"]),
        ("/train-0001.tar", ["0001"]),
        ("/train-{0000..0001}.tar", ["0000", "0001"]),
        ("/train-{0002,0000}.tar", ["0002", "0000"]),
        ("/train-*.tar", ["0000", "0001", "0002"]),
        ("/*-000[12].tar", ["0001", "0002"]),
    ],
)
def test_one_tar_a_folder_braces_and_wildcards_are_patterns(
    tmp_path: Path, pattern: str, shards: list[str]
) -> None:
    webdataset_tars(tmp_path / "own")
    ss.index_tars(f"{tmp_path}/own{pattern}")
    manifest = ss.open(str(tmp_path / "own")).manifest
    assert [shard.name for shard in manifest.table] == [f"train-{name}.tar" for name in shards]


def test_a_pattern_may_be_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    webdataset_tars(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert ss.index_tars("train-0000.tar").samples == 7
    assert len(ss.open("train-0000.tar")) == len(ss.open(".")) == 7


def test_some_of_the_tars_are_a_dataset_of_their_own(tmp_path: Path) -> None:
    written = webdataset_tars(tmp_path / "own")
    ss.index_tars(tmp_path / "own")
    some = read_by_streamshard(f"{tmp_path}/own/train-{{0002,0000}}.tar")
    assert as_sets(some) == as_sets(written[14:] + written[:7])


def test_the_index_may_lie_elsewhere(tmp_path: Path) -> None:
    written = webdataset_tars(tmp_path / "own")
    before = files_of(tmp_path / "own")
    ss.index_tars(tmp_path / "own", out=str(tmp_path / "index"))
    assert files_of(tmp_path / "own") == before
    found = read_by_streamshard(str(tmp_path / "own"), index=str(tmp_path / "index"))
    assert as_sets(found) == as_sets(written)
    with pytest.raises(NoIndexError):
        ss.open(str(tmp_path / "own"))
    text = b"".join(files_of(tmp_path / "index").values())
    assert str(tmp_path).encode() not in text


def test_tars_without_an_index_name_the_command_that_makes_one(tmp_path: Path) -> None:
    webdataset_tars(tmp_path / "own")
    with pytest.raises(NoIndexError, match=f"`streamshard index {tmp_path}/own`"):
        ss.open(str(tmp_path / "own"))


def test_the_index_depends_on_the_tars_alone(tmp_path: Path) -> None:
    webdataset_tars(tmp_path / "own")
    ss.index_tars(tmp_path / "own", out=str(tmp_path / "one"))
    os.utime(tars_of(tmp_path / "own")[0], (1, 1))
    ss.index_tars(f"{tmp_path}/own/train-{{0000..0002}}.tar", out=str(tmp_path / "two"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_parts_that_some_samples_lack_become_none(tmp_path: Path) -> None:
    members = [("a.txt", b"a"), ("b.txt", b"b"), ("b.cls", b"1"), ("c.cls", b"2"), ("c.txt", b"c")]
    write_tar(tmp_path / "x.tar", members)
    ss.index_tars(tmp_path)
    shards = ss.open(str(tmp_path))
    assert [shards[row] for row in range(3)] == [
        {"__key__": "a", "txt": "a", "cls": None},
        {"__key__": "b", "txt": "b", "cls": 1},
        {"__key__": "c", "txt": "c", "cls": 2},
    ]
    assert {name: part.optional for name, part in shards.manifest.parts.items()} == {
        "txt": False,
        "cls": True,
    }
    assert as_sets(read_by_streamshard(str(tmp_path))) == as_sets(read_by_webdataset(tmp_path))


@pytest.mark.parametrize("first", ["a", "b"])
def test_parts_that_a_whole_tar_lacks_become_none(tmp_path: Path, first: str) -> None:
    second = "b" if first == "a" else "a"
    write_tar(tmp_path / f"{first}.tar", [("1.txt", b"x"), ("2.txt", b"y")])
    write_tar(tmp_path / f"{second}.tar", [("3.txt", b"z"), ("3.cls", b"7")])
    ss.index_tars(tmp_path)
    shards = ss.open(str(tmp_path))
    found = {sample["__key__"]: sample["cls"] for sample in (shards[row] for row in range(3))}
    assert found == {"1": None, "2": None, "3": 7}
    assert shards.manifest.parts["cls"].optional
    assert not shards.manifest.parts["txt"].optional
    assert not list(shards.find_damage())


def test_upper_case_suffixes_are_lowered_as_webdataset_does(tmp_path: Path) -> None:
    jpeg = image_bytes("JPEG")
    members = [("a.JPG", jpeg), ("a.Seg.PNG", image_bytes()), ("B.jpg", jpeg), ("B.seg.png", b"x")]
    write_tar(tmp_path / "x.tar", members)
    ss.index_tars(tmp_path)
    found = read_by_streamshard(str(tmp_path))
    assert [(key, set(parts)) for key, parts in found] == [
        ("a", {"jpg", "seg.png"}),
        ("B", {"jpg", "seg.png"}),
    ]
    assert as_sets(found) == as_sets(read_by_webdataset(tmp_path))


def test_names_that_are_no_samples_are_skipped_as_webdataset_does(tmp_path: Path) -> None:
    members = [
        ("__meta__/info.json", b"{}"),
        ("README", b"x"),
        ("dir.with.dots/LICENSE", b"x"),
        ("dir.with.dots/1.txt", b"a"),
        ("./2.txt", b"b"),
        ("__pack__", b"x"),
        (".hidden", b"x"),
    ]
    write_tar(tmp_path / "x.tar", members)
    ss.index_tars(tmp_path)
    found = read_by_streamshard(str(tmp_path))
    assert found == [("dir.with.dots/1", {"txt": b"a"}), ("./2", {"txt": b"b"})]
    assert found == read_by_webdataset(tmp_path)


@pytest.mark.parametrize(
    "format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT], ids=str
)
def test_names_of_any_length_and_script_are_read(tmp_path: Path, format: int) -> None:
    keys = ["short", "d" * 60 + "/" + "f" * 70, "grün/ß ü", "with space"]
    if format != tarfile.USTAR_FORMAT:
        keys += ["k" * 99, "k" * 100, "k" * 101, "/".join(["deep" * 20] * 5)]
    samples: Samples = [(key, {"txt": key.encode(), "bin": bytes(700)}) for key in keys]
    members = [(f"{key}.{name}", data) for key, parts in samples for name, data in parts.items()]
    write_tar(tmp_path / "x.tar", members, format)
    ss.index_tars(tmp_path)
    assert read_by_streamshard(str(tmp_path)) == samples == read_by_webdataset(tmp_path)
    assert not list(ss.open(str(tmp_path)).find_damage())


def test_unknown_and_undecodable_parts_stay_bytes_and_are_counted(tmp_path: Path) -> None:
    members = [("1.jpg", b"no image"), ("1.weird", b"\0\1"), ("2.jpg", image_bytes("JPEG"))]
    write_tar(tmp_path / "x.tar", [*members, ("2.weird", b"\2")])
    summary = ss.index_tars(tmp_path)
    assert summary.notes == ["1 parts could not be decoded"]
    assert as_sets(read_by_streamshard(str(tmp_path))) == as_sets(read_by_webdataset(tmp_path))
    assert ss.open(str(tmp_path))[1]["weird"] == b"\2"


def test_graphs_keep_their_meaning_where_the_sidecars_are_lost(tmp_path: Path) -> None:
    graphs = [ring(nodes) for nodes in (2, 3, 4)]
    ss.pack_graphs(graphs, tmp_path / "own", shuffle=False)
    packed = ss.open(str(tmp_path / "own"))
    before = files_of(tmp_path / "own")
    for name in before:
        if name.startswith(".streamshard"):
            (tmp_path / "own" / name).unlink()
    ss.index_tars(tmp_path / "own")
    again = ss.open(str(tmp_path / "own"))
    assert again.manifest.fingerprint == packed.manifest.fingerprint
    assert again.manifest.parts == packed.manifest.parts
    for row in range(3):
        assert torch.equal(again[row]["graph"].x, graphs[row].x)
    assert files_of(tmp_path / "own") == before


def test_a_sample_written_without_a_folder_or_by_tarwriter_is_read(tmp_path: Path) -> None:
    with TarWriter(str(tmp_path / "x.tar")) as writer:
        writer.write({"__key__": "one", "txt": "hello", "ten": b"1"})
    ss.index_tars(tmp_path / "x.tar")
    assert as_sets(read_by_streamshard(str(tmp_path))) == as_sets(read_by_webdataset(tmp_path))
