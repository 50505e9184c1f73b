from __future__ import annotations

import bz2
import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
import webdataset
from PIL import Image

import streamshard as ss
from streamshard.errors import PackError, SampleError, UsageError
from streamshard.pack.deliver import SplitSummary
from streamshard.pack.job import Summary
from tests.pack.sources import (
    Samples,
    class_folders,
    files_of,
    image_bytes,
    read_by_streamshard,
    tars_of,
    write_tar,
)
from tests.pack.test_pack_resume import stopped


def members(begin: int, end: int) -> list[tuple[str, bytes]]:
    """A picture, a class and a text for each of some numbers."""
    found = []
    for number in range(begin, end):
        found.append((f"set/{number:04d}.png", image_bytes(seed=number)))
        found.append((f"set/{number:04d}.cls", b"%d" % (number % 3)))
        found.append((f"set/{number:04d}.note.txt", b"text %d" % number))
    return found


def parts(begin: int, end: int) -> Samples:
    return [
        (
            f"set/{number:04d}",
            {
                "png": image_bytes(seed=number),
                "cls": b"%d" % (number % 3),
                "note.txt": b"text %d" % number,
            },
        )
        for number in range(begin, end)
    ]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Six tars with ten samples each."""
    for number in range(6):
        write_tar(tmp_path / "old" / f"t-{number}.tar", members(10 * number, 10 * number + 10))
    return tmp_path / "old"


def test_keys_and_parts_stay_as_they_are(old: Path, tmp_path: Path) -> None:
    summary = ss.pack_tars(old, tmp_path / "dst", shuffle=False)
    assert summary.samples == 60
    assert summary.notes == []
    assert read_by_streamshard(str(tmp_path / "dst")) == parts(0, 60)


def test_shards_are_cut_anew(old: Path, tmp_path: Path) -> None:
    ss.pack_tars(old, tmp_path / "large", shuffle=False)
    ss.pack_tars(old, tmp_path / "small", shuffle=False, shard_size=20_000)
    assert len(tars_of(tmp_path / "large")) == 1
    assert len(tars_of(tmp_path / "small")) > 6
    assert read_by_streamshard(str(tmp_path / "small")) == parts(0, 60)


def test_the_shuffle_mixes_tars_and_their_samples_by_the_seed(old: Path, tmp_path: Path) -> None:
    found = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        ss.pack_tars(old, tmp_path / name, seed=seed)
        found[name] = read_by_streamshard(str(tmp_path / name))
        assert dict(found[name]) == dict(parts(0, 60))
    assert found["one"] == found["again"] != found["other"]
    first = [int(key[-4:]) // 10 for key, _ in found["one"][:10]]
    assert len(set(first)) > 2, "samples of several tars lie side by side"


def test_tars_are_named_by_folders_names_braces_and_wildcards(old: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "more" / "t-0.tar", members(60, 65))
    wanted = {
        f"{old}/": (0, 60),
        f"{old}/t-3.tar": (30, 40),
        f"{old}/t-{{1..2}}.tar": (10, 30),
        f"{old}/t-[45].tar": (40, 60),
        f"{tmp_path}/{{more,old}}/t-0.tar": None,
    }
    for number, (pattern, bounds) in enumerate(wanted.items()):
        ss.pack_tars(pattern, tmp_path / f"{number}", shuffle=False)
        expected = parts(*bounds) if bounds else parts(60, 65) + parts(0, 10)
        assert read_by_streamshard(str(tmp_path / f"{number}")) == expected


def test_what_webdataset_writes_with_pax_headers_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for number in range(5):
            writer.write({"__key__": f"long/{'x' * 60}/{number}", "txt": f"text {number}"})
    assert b"././@PaxHeader" in (tmp_path / "w.tar").read_bytes()
    ss.pack_tars(tmp_path / "w.tar", tmp_path / "dst", shuffle=False)
    assert read_by_streamshard(str(tmp_path / "dst")) == [
        (f"long/{'x' * 60}/{number}", {"txt": b"text %d" % number}) for number in range(5)
    ]


def test_compressed_and_remote_tars_are_the_same_and_their_copies_go_away(
    old: Path, tmp_path: Path, scratch: Path
) -> None:
    options: dict[str, Any] = {"shard_size": 20_000, "seed": 3}
    (tmp_path / "gz").mkdir()
    ss.pack_tars(old, tmp_path / "plain", **options)
    for number, path in enumerate(tars_of(old)):
        data = path.read_bytes()
        packed = (f"{path.name}.bz2", bz2.compress(data))
        if number % 2:
            packed = (path.name.replace(".tar", ".tgz"), gzip.compress(data))
        (tmp_path / "gz" / packed[0]).write_bytes(packed[1])
    ss.pack_tars(tmp_path / "gz", tmp_path / "unpacked", **options)
    assert files_of(tmp_path / "unpacked") == files_of(tmp_path / "plain")
    assert os.listdir(scratch) == []
    try:
        for path in tars_of(old):
            with fsspec.open(f"memory://tars/{path.name}", "wb") as file:
                file.write(path.read_bytes())
        ss.pack_tars("memory://tars/t-{0..5}.tar", tmp_path / "fetched", **options)
        ss.pack_tars("memory://tars", tmp_path / "listed", resize=5, workers=2, **options)
    finally:
        fsspec.filesystem("memory").rm("/tars", recursive=True)
    assert files_of(tmp_path / "fetched") == files_of(tmp_path / "plain")
    assert os.listdir(scratch) == []
    ss.pack_tars(old, tmp_path / "resized", resize=5, workers=0, **options)
    assert files_of(tmp_path / "listed") == files_of(tmp_path / "resized")


def test_the_bytes_do_not_depend_on_who_encodes(old: Path, tmp_path: Path) -> None:
    packed = []
    for workers in (0, 1, 2):
        dst = tmp_path / f"{workers}"
        ss.pack_tars(old, dst, resize=5, format="jpg", workers=workers, shard_size=9000)
        packed.append(files_of(dst))
    assert packed[0] == packed[1] == packed[2]


def test_images_are_encoded_anew_and_masks_are_not(tmp_path: Path) -> None:
    mask = image_bytes(size=(30, 20), seed=9)
    write_tar(
        tmp_path / "t.tar",
        [("a.JPEG", image_bytes("JPEG", size=(30, 20))), ("a.seg.png", mask), ("a.cls", b"4")],
    )
    ss.pack_tars(tmp_path / "t.tar", tmp_path / "dst", resize=10, format="webp", workers=0)
    [(key, found)] = read_by_streamshard(str(tmp_path / "dst"))
    assert key == "a"
    assert set(found) == {"webp", "seg.png", "cls"}
    assert (found["seg.png"], found["cls"]) == (mask, b"4")
    image = Image.open(io.BytesIO(found["webp"]))
    assert (image.format, image.size) == ("WEBP", (15, 10))


def test_the_classes_of_a_dataset_of_ours_are_kept(tmp_path: Path) -> None:
    class_folders(tmp_path / "src")
    ss.pack_images(tmp_path / "src", tmp_path / "one", shuffle=False)
    ss.pack_tars(tmp_path / "one", tmp_path / "two", shuffle=False)
    assert ss.open(str(tmp_path / "two")).classes == ["ant", "bee", "cat"]
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_graphs_are_packed_again_as_they_are(tmp_path: Path) -> None:
    from tests.pack.sources import ring

    ss.pack_graphs([ring(n) for n in range(3, 20)], tmp_path / "one", shuffle=False)
    ss.pack_tars(tmp_path / "one", tmp_path / "two", shuffle=False)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_keys_that_readers_would_lose_are_escaped_and_counted(tmp_path: Path) -> None:
    names = ["./plain.txt", "two words.txt", "v1.0/a.txt", "class%200/b.txt"]
    write_tar(tmp_path / "t.tar", [(name, b"x") for name in names])
    summary = ss.pack_tars(tmp_path / "t.tar", tmp_path / "dst", shuffle=False)
    keys = [key for key, _ in read_by_streamshard(str(tmp_path / "dst"))]
    assert keys == ["plain", "two%20words", "v1%2E0/a", "class%200/b"]
    assert summary.notes == ["2 keys had characters that were escaped as %XX"]


def test_a_key_in_two_tars_is_refused_or_skipped_with_its_tar(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tar(tmp_path / "t" / f"{name}.tar", [("a.txt", b"x"), (f"{name}.txt", b"x")])
    with pytest.raises(SampleError, match=r"two\.tar: key 'a' is there twice"):
        ss.pack_tars(tmp_path / "t", tmp_path / "dst", shuffle=False)
    summary = ss.pack_tars(tmp_path / "t", tmp_path / "dst", shuffle=False, on_error="skip")
    assert (summary.samples, len(summary.skipped)) == (3, 1)


def test_samples_with_other_parts_are_refused_by_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a.txt", b"x"), ("b.txt", b"x"), ("b.cls", b"1")])
    with pytest.raises(SampleError, match=r"t\.tar: key b has the parts \['cls', 'txt'\]"):
        ss.pack_tars(tmp_path / "t.tar", tmp_path / "dst", shuffle=False)


def test_an_image_that_is_not_whole_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a.png", image_bytes()), ("b.png", image_bytes()[:70])])
    for resize in (None, 5):
        options: dict[str, Any] = {"resize": resize, "workers": 0, "overwrite": True}
        with pytest.raises(SampleError, match=r"t\.tar: key b, part png: not a"):
            ss.pack_tars(tmp_path / "t.tar", tmp_path / "dst", shuffle=False, **options)
        summary = ss.pack_tars(tmp_path / "t.tar", tmp_path / "dst", on_error="skip", **options)
        assert (summary.samples, len(summary.skipped)) == (1, 1)


def test_a_damaged_tar_ends_the_pack_or_is_counted(old: Path, tmp_path: Path) -> None:
    """The samples in front of the damage are packed, but for the last, which may not be whole."""
    path = old / "t-3.tar"
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        begins = [member.offset for member in archive if member.name.endswith(".png")]
    zeroed = data[: begins[6]] + b"x" * 512 + data[begins[6] + 512 :]
    for wrong, whole in ((data[: begins[4] + 600], 3), (zeroed, 5), (data[:100], 0)):
        path.write_bytes(wrong)
        with pytest.raises(SampleError, match=r"t-3\.tar: "):
            ss.pack_tars(old, tmp_path / "dst")
        summary = ss.pack_tars(old, tmp_path / "dst", shuffle=False, on_error="skip")
        assert summary.samples == 50 + whole
        assert [f"behind its first {whole} samples" in reason for reason in summary.skipped] == [
            True
        ]
        assert read_by_streamshard(str(tmp_path / "dst")) == parts(0, 30 + whole) + parts(40, 60)
        shutil.rmtree(tmp_path / "dst")
    path.unlink()
    (old / "t-3.tar.gz").write_bytes(gzip.compress(data)[:300])
    with pytest.raises(SampleError, match=r"t-3\.tar\.gz: "):
        ss.pack_tars(old / "t-3.tar.gz", tmp_path / "dst")
    options: dict[str, Any] = {"on_error": "skip", "split": {"few": 0.1, "most": 0.9}}
    summary = ss.pack_tars(old, tmp_path / "dst", **options)
    assert isinstance(summary, SplitSummary)
    assert (summary.samples, len(summary.skipped)) == (50, 1)
    assert len(summary.splits["few"].skipped) == 1, "told with the first split"
    options = {"on_error": "skip", "include": ["set/000?"]}
    summary = ss.pack_tars(old, tmp_path / "some", **options)
    assert (summary.samples, len(summary.skipped)) == (10, 1), "its keys are not known"


def test_a_pack_of_a_damaged_tar_goes_on_to_the_same_bytes(old: Path, tmp_path: Path) -> None:
    (old / "t-3.tar").write_bytes((old / "t-3.tar").read_bytes()[:9_000])

    def pack(dst: Path, **given: Any) -> Summary:
        return ss.pack_tars(old, dst, on_error="skip", shard_size=30_000, **given)

    whole = pack(tmp_path / "whole")
    assert len(whole.skipped) == 1
    for inputs in (20, 45):
        stopped(pack, tmp_path / f"{inputs}", inputs)
        assert pack(tmp_path / f"{inputs}", resume=True).skipped == whole.skipped
        assert files_of(tmp_path / f"{inputs}") == files_of(tmp_path / "whole")


def test_keys_may_be_the_numbers_of_tar_and_sample(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tar(tmp_path / "t" / f"{name}.tar", [("a b.txt", b"x"), (f"{'y' * 120}.txt", b"y")])
    with pytest.raises(SampleError, match="--keys number is shorter"):
        ss.pack_tars(tmp_path / "t", tmp_path / "dst", shuffle=False)
    summary = ss.pack_tars(tmp_path / "t", tmp_path / "dst", keys="number")
    found = dict(read_by_streamshard(str(tmp_path / "dst")))
    assert sorted(found) == [f"00000{tar}-00000{row}" for tar in range(2) for row in range(2)]
    assert found["000001-000001"] == {"txt": b"y"}
    assert summary.notes == []


def test_tars_that_are_not_there_are_named(old: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for pattern, reason in (
        (f"{old}/t-{{5..6}}.tar", r"t-6\.tar: no such tar"),
        (f"{old}/x-*.tar", r"x-\*\.tar: no such tar"),
        (f"{tmp_path}/empty", "empty: no tar there"),
        (f"{tmp_path}/nowhere", "nowhere: no tar there"),
    ):
        with pytest.raises(PackError, match=reason):
            ss.pack_tars(pattern, tmp_path / "dst")
    with pytest.raises(UsageError, match="unbalanced braces"):
        ss.pack_tars(f"{old}/t-{{0..5.tar", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_patterns_choose_keys(old: Path, tmp_path: Path) -> None:
    ss.pack_tars(old, tmp_path / "dst", include=["set/000?"], exclude=["*3"], shuffle=False)
    keys = [key for key, _ in read_by_streamshard(str(tmp_path / "dst"))]
    assert keys == [f"set/{number:04d}" for number in range(10) if number != 3]
