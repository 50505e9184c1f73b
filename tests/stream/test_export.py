"""What other readers want beside the shards, compared with what tarfile finds in the tars."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tarfile
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from webdataset.tariterators import base_plus_ext

import streamshard as ss
from streamshard.errors import DamagedError, DatasetError, UsageError
from streamshard.pack.index import index_tars
from streamshard.stream.export import export
from tests.pack.sources import class_folders, files_of, ring, tars_of, write_tar

ALL = "wids,dali,energon"


class Found(NamedTuple):
    """A member as tarfile finds it."""

    key: str
    suffix: str
    header: int
    offset: int
    size: int


def members(path: Path) -> tuple[list[list[Found]], int]:
    """The members of each sample, and the end of the last."""
    samples: list[list[Found]] = []
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            key, suffix = base_plus_ext(info.name)
            if key is None or info.name.startswith("__"):
                continue
            found = Found(key, suffix, info.offset, info.offset_data, info.size)
            if samples and samples[-1][0].key == key:
                samples[-1].append(found)
            else:
                samples.append([found])
        return samples, archive.offset


def assert_as_tarfile_finds(folder: Path) -> None:
    """Every exported number is what Python's tarfile says."""
    assert_dali(folder)
    assert_energon(folder)
    assert_wids(folder)


def assert_dali(folder: Path) -> None:
    """Written as DALI's tools/wds2idx.py writes it."""
    for path in tars_of(folder):
        samples, _ = members(path)
        lines = [f"v1.2 {len(samples)}"]
        lines += [
            " ".join(
                f"{part.suffix.lower()} {part.offset} {part.size} {part.key}.{part.suffix.lower()}"
                for part in sample
            )
            for sample in samples
        ]
        assert path.with_suffix(".idx").read_text() == "\n".join(lines) + "\n"
        assert all(part.offset % 512 == 0 for sample in samples for part in sample)


def assert_energon(folder: Path) -> None:
    """Written as Energon's `prepare` writes it."""
    sample_rows: list[tuple[object, ...]] = []
    part_rows: list[tuple[object, ...]] = []
    counts = {}
    for number, path in enumerate(tars_of(folder)):
        samples, end = members(path)
        begins = [sample[0].header for sample in samples] + [end]
        found = np.fromfile(f"{path}.idx", np.uint64)
        assert found.tolist() == begins
        counts[path.name] = len(samples)
        for row, sample in enumerate(samples):
            begin, size = begins[row], begins[row + 1] - begins[row]
            sample_rows.append((number, sample[0].key, row, begin, size))
            part_rows += [
                (number, row, part.suffix.lower(), part.offset, part.size) for part in sample
            ]
    meta = folder / ".nv-meta"
    info = json.loads((meta / ".info.json").read_text())
    assert list(info["shard_counts"].items()) == list(counts.items())
    with sqlite3.connect(meta / "index.sqlite") as database:
        assert database.execute("SELECT * FROM samples").fetchall() == sample_rows
        assert database.execute("SELECT * FROM sample_parts").fetchall() == part_rows
        indexes = database.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
    database.close()
    assert {
        "idx_samples_by_tar_and_idx",
        "idx_sample_parts_seq",
        "idx_sample_parts_full",
    } <= {name for (name,) in indexes}
    fingerprint = ss.open(str(folder)).manifest.fingerprint
    assert (meta / "index.uuid").read_text() == str(uuid.UUID(fingerprint))


def assert_wids(folder: Path) -> None:
    path = folder / ".streamshard" / "wids.json"
    head = json.loads(path.read_text())
    assert (head["__kind__"], head["wids_version"]) == ("wids-shard-index-v1", 1)
    assert len(head["shardlist"]) == len(tars_of(folder))
    for shard, tar in zip(head["shardlist"], tars_of(folder), strict=True):
        assert (path.parent / shard["url"]).resolve() == tar.resolve()
        assert shard["nsamples"] == len(members(tar)[0])
        assert shard["filesize"] == tar.stat().st_size
        assert shard["md5sum"] == hashlib.md5(tar.read_bytes()).hexdigest()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Images in several shards."""
    class_folders(tmp_path / "photos")
    ss.pack_images(tmp_path / "photos", tmp_path / "own", shard_size=6_000)
    assert len(tars_of(tmp_path / "own")) > 2
    return tmp_path / "own"


def test_exported_offsets_are_those_that_tarfile_finds(own: Path) -> None:
    before = files_of(own)
    done = export(own, ALL)
    after = files_of(own)
    assert {name: after[name] for name in before} == before
    assert done.files == len(after) - len(before) == 2 * len(tars_of(own)) + 6
    assert done.bytes == sum(len(data) for name, data in after.items() if name not in before)
    assert done.formats == ["wids", "dali", "energon"]
    assert_as_tarfile_finds(own)


def test_graphs_with_empty_parts_are_exported_alike(tmp_path: Path) -> None:
    ss.pack_graphs([ring(nodes, name="") for nodes in range(1, 30)], tmp_path / "own")
    export(tmp_path / "own", ALL)
    assert_as_tarfile_finds(tmp_path / "own")
    with ss.ShardWriter(tmp_path / "empty") as writer:
        writer.write({"__key__": "a", "bin": b"", "txt": b""})
        writer.write({"__key__": "b", "bin": b"", "txt": bytes(512)})
    export(tmp_path / "empty", ALL)
    assert_as_tarfile_finds(tmp_path / "empty")


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("long", [False, True])
def test_tars_of_others_are_exported_with_their_extensions(
    tmp_path: Path, format: int, long: bool
) -> None:
    name = "d/" * 40 + "x" * 90 if long else "d/x"
    for number in range(2):
        write_tar(
            tmp_path / "own" / f"x.{number}.tar",
            [
                ("README", b"no sample"),
                (f"{name}{number}.JPG", b"1" * 600),
                (f"{name}{number}.cls", b"1"),
                ("__meta__/about.json", b"{}"),
                (f"{name}b{number}.cls", b"2"),
                (f"{name}b{number}.seg.PNG", b""),
            ],
            format,
        )
    index_tars(tmp_path / "own")
    export(tmp_path / "own", ALL)
    assert_as_tarfile_finds(tmp_path / "own")


def test_the_same_dataset_has_the_same_files_anywhere(own: Path, tmp_path: Path) -> None:
    export(own, ALL)
    ss.pack_images(tmp_path / "photos", tmp_path / "elsewhere" / "b", shard_size=6_000)
    export(tmp_path / "elsewhere" / "b", ALL)
    assert files_of(tmp_path / "elsewhere" / "b") == files_of(own)
    before = files_of(own)
    export(own, ALL)
    assert files_of(own) == before


def test_a_dataset_whose_index_lies_elsewhere_is_exported_beside_its_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "x.tar", [("a.txt", b"1"), ("b.txt", b"2")])
    index_tars(tmp_path / "tars", out=str(tmp_path / "index"))
    export(tmp_path / "tars", ALL, index=str(tmp_path / "index"))
    assert_dali(tmp_path / "tars")
    assert_wids(tmp_path / "tars")
    assert (tmp_path / "tars" / "x.tar.idx").exists()


def test_a_dataset_behind_a_url_is_exported_there(own: Path, tmp_path: Path) -> None:
    export(f"local://{own}", ALL)
    assert_as_tarfile_finds(own)


def test_what_lies_there_and_is_something_else_is_not_replaced(own: Path) -> None:
    export(own, ALL)
    edited = own / ".nv-meta" / "dataset.yaml"
    edited.write_text("sample_type: mine\n")
    with pytest.raises(UsageError, match=r"dataset\.yaml is there already .* --overwrite"):
        export(own, "energon")
    assert edited.read_text() == "sample_type: mine\n"
    export(own, "energon", overwrite=True)
    assert "CrudeWebdataset" in edited.read_text()


def test_overwriting_a_dataset_removes_what_was_exported(own: Path, tmp_path: Path) -> None:
    plain = files_of(own)
    export(own, ALL)
    left = [".shard-000000.idx.7.tmp", ".shard-000000.tar.idx.7.tmp", ".nv-meta/.split.yaml.7.tmp"]
    for name in [*left, ".streamshard/.wids.json.7.tmp"]:
        (own / name).write_bytes(b"of an export that was killed")
    ss.pack_images(tmp_path / "photos", own, shard_size=6_000, overwrite=True)
    assert files_of(own) == plain


def test_overwriting_leaves_what_no_export_wrote(own: Path, tmp_path: Path) -> None:
    export(own, ALL)
    (own / ".nv-meta" / "sample_loader.py").write_text("mine = 1\n")
    before = files_of(own)
    with pytest.raises(UsageError, match=r"\.nv-meta/sample_loader\.py, which no pack wrote"):
        ss.pack_images(tmp_path / "photos", own, overwrite=True)
    assert files_of(own) == before


def test_verify_and_reading_take_no_notice(own: Path) -> None:
    before = [ss.open(str(own))[number]["__key__"] for number in range(15)]
    export(own, ALL)
    shards = ss.open(str(own))
    assert list(shards.find_damage()) == []
    assert [shards[number]["__key__"] for number in range(15)] == before


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_tar_is_not_exported(own: Path, damage: str) -> None:
    path = tars_of(own)[1]
    data = path.read_bytes()
    path.write_bytes(data[:-512] if damage == "cut" else data[:600] + b"?" + data[601:])
    with pytest.raises(DamagedError, match=r"shard-000001\.tar: "):
        export(own, "wids")
    assert not (own / ".streamshard" / "wids.json").exists()


def test_a_tar_that_is_not_that_of_its_index_is_not_exported(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"1"), ("b.txt", b"2")], tarfile.USTAR_FORMAT)
    index_tars(tmp_path)
    write_tar(path, [("a.txt", b"1"), ("a.tx2", b"2")], tarfile.USTAR_FORMAT)
    with pytest.raises(DamagedError, match=r"x\.tar: 1 samples in the tar, 2 in its index"):
        export(tmp_path, "energon")


@pytest.mark.parametrize("name", ["a b.txt", "ä.txt", "a.t xt"])
def test_names_that_dali_can_not_read_are_refused(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "x.tar", [(name, b"1")])
    index_tars(tmp_path)
    with pytest.raises(DatasetError, match=r"x\.tar: .*DALI"):
        export(tmp_path, "dali")
    export(tmp_path, "wids,energon")
    assert_energon(tmp_path)


def test_keys_that_energon_can_not_tell_apart_are_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_tar(tmp_path / f"{name}.tar", [("same.txt", b"1")])
    index_tars(tmp_path)
    with pytest.raises(DatasetError, match=r"y\.tar: key same is in a shard before too"):
        export(tmp_path, "energon")
    assert not (tmp_path / ".nv-meta").exists()


def test_braces_in_names_are_not_expanded_by_energon(tmp_path: Path) -> None:
    from braceexpand import braceexpand

    write_tar(tmp_path / "x{1,2}.tar", [("a.txt", b"1")])
    index_tars(tmp_path)
    export(tmp_path, "energon")
    line = (tmp_path / ".nv-meta" / "split.yaml").read_text().splitlines()[2]
    assert list(braceexpand(json.loads(line.removeprefix("  - ")))) == ["x{1,2}.tar"]


@pytest.mark.parametrize("to", ["", "wids,dali,hf", "WIDS"])
def test_readers_that_are_not_known_are_refused(own: Path, to: str) -> None:
    with pytest.raises(UsageError, match="known are wids, dali, energon"):
        export(own, to)
