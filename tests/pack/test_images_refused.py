"""What is wrong with a folder of images is said at pack, and names the file."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.errors import PackError, SampleError, UsageError
from tests.pack.sources import (
    class_folders,
    files_of,
    image_bytes,
    read_by_streamshard,
    write_files,
)

WHOLE = image_bytes("JPEG", size=(40, 30))


def test_a_folder_that_mixes_formats_is_refused_with_one_of_each_and_the_remedy(
    tmp_path: Path,
) -> None:
    files = {"a/1.jpg": b"", "a/2.jpg": b"", "b/3.png": b"", "b/4.png": b""}
    write_files(tmp_path / "src", files)
    with pytest.raises(PackError, match=r"several formats \(a/1\.jpg, b/3\.png\); --format"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst")


def test_an_image_beside_the_class_folders_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "src", ["ant", "bee"], each=1)
    write_files(tmp_path / "src", {"stray.png": image_bytes()})
    with pytest.raises(PackError, match=r"src: stray\.png lies beside the class folders \(ant"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"nowhere: no such folder"):
        ss.pack_images(tmp_path / "nowhere", tmp_path / "dst")


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": image_bytes()})
    with pytest.raises(PackError, match=r"a\.png: is a file, not a folder"):
        ss.pack_images(tmp_path / "a.png", tmp_path / "dst")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "src" / "ant").mkdir(parents=True)
    with pytest.raises(PackError, match=r"src: no images .* 0 other files"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst")


def test_a_folder_without_images_is_named_with_what_else_is_there(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"ant/a.txt": b"x", "b.mp4": b"x", ".hidden.png": b"x"})
    with pytest.raises(PackError, match=r"src: no images .* 2 other files"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst")


def test_a_folder_that_can_not_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "src", ["ant", "bee"], each=1)
    listed = os.scandir

    def locked(path: Any) -> Any:  # root, who may run this, is let in everywhere
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ss.errors.StreamshardError, match="bee"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst")


UNREADABLE = {
    "empty": b"",
    "text": b"<html>404</html>",
    "header-only": WHOLE[:3],
    "cut-in-header": WHOLE[:100],
    "cut-in-data": WHOLE[:-20],
    "cut-png": image_bytes("PNG")[:-30],
    "cut-webp": image_bytes("WEBP")[:-9],
    "flipped-png": image_bytes("PNG")[:60] + b"\0\0\0\0" + image_bytes("PNG")[64:],
}


@pytest.mark.parametrize(("resize", "keys"), [(None, "path"), (None, "number"), (5, "number")])
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_image_is_named_by_its_file(
    tmp_path: Path, name: str, resize: int | None, keys: str
) -> None:
    files = {"ant/1.jpg": WHOLE, "bee/b d.jpg": UNREADABLE[name], "bee/3.jpg": WHOLE}
    write_files(tmp_path / "src", files)
    options: dict[str, Any] = {"resize": resize, "keys": keys, "workers": 0}
    with pytest.raises(SampleError, match=r"bee/b d\.jpg: "):
        ss.pack_images(tmp_path / "src", tmp_path / "dst", **options)
    assert "manifest.json" not in str(files_of(tmp_path / "dst").keys())
    summary = ss.pack_images(
        tmp_path / "src", tmp_path / "dst", on_error="skip", overwrite=True, **options
    )
    assert summary.samples == 2
    assert len(summary.skipped) == 1
    assert "bee/b d.jpg: " in summary.skipped[0]


def test_a_jpeg_cut_anywhere_is_skipped_and_listed(tmp_path: Path) -> None:
    cuts = {f"{end:05d}.jpg": WHOLE[:end] for end in range(0, len(WHOLE) - 2, 7)}
    write_files(tmp_path / "src", {**cuts, "whole.jpg": WHOLE})
    summary = ss.pack_images(tmp_path / "src", tmp_path / "dst", on_error="skip")
    assert summary.samples == 1
    assert len(summary.skipped) == len(cuts)
    assert read_by_streamshard(str(tmp_path / "dst")) == [("whole", {"jpg": WHOLE})]


def test_images_that_are_skipped_change_nothing_else(tmp_path: Path) -> None:
    class_folders(tmp_path / "clean", each=4)
    class_folders(tmp_path / "src", each=4)
    ss.pack_images(tmp_path / "clean", tmp_path / "without", shuffle=False)
    write_files(tmp_path / "src", {"ant/x.png": b"x", "bee/y.png": b"y", "cat/z.png": b"z"})
    summary = ss.pack_images(tmp_path / "src", tmp_path / "with", shuffle=False, on_error="skip")
    assert (summary.samples, len(summary.skipped)) == (12, 3)
    assert files_of(tmp_path / "with") == files_of(tmp_path / "without")


def test_a_folder_of_which_every_image_is_skipped_says_why(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"a.jpg": b"x", "b.jpg": b"y"})
    with pytest.raises(PackError, match=r"no sample was written.*a\.jpg"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst", on_error="skip", shuffle=False)


@pytest.mark.parametrize("threads", [False, True])
def test_a_file_that_vanishes_while_packing_is_named(tmp_path: Path, threads: bool) -> None:
    class_folders(tmp_path / "src", ["ant"], each=5)
    gone = tmp_path / "src" / "ant" / "4.png"

    def pack(dst: str, **options: Any) -> Any:
        gone.write_bytes(image_bytes())

        class Vanishing(ThreadPoolExecutor):
            """Runs work as ever, after the file was deleted."""

            def submit(self, *arguments: Any, **named: Any) -> Any:
                gone.unlink(missing_ok=True)
                return super().submit(*arguments, **named)

        def progress(samples: int, total: int | None, nbytes: int) -> None:
            gone.unlink(missing_ok=True)

        if not threads:
            options["progress"] = progress
            return ss.pack_images(tmp_path / "src", tmp_path / dst, shuffle=False, **options)
        with Vanishing(1) as executor:
            options["executor"] = executor
            return ss.pack_images(tmp_path / "src", tmp_path / dst, shuffle=False, **options)

    with pytest.raises(SampleError, match=r"ant/4\.png: No such file"):
        pack("raise")
    summary = pack("skip", on_error="skip")
    assert summary.samples == 4
    assert "ant/4.png: No such file" in summary.skipped[0]


def test_a_path_longer_than_a_name_in_a_tar_is_refused_with_the_remedy(tmp_path: Path) -> None:
    name = f"{'d' * 50}/{'f' * 50}.png"
    write_files(tmp_path / "src", {name: image_bytes()})
    with pytest.raises(SampleError, match=r"f\.png' is longer than 100 bytes; --keys number"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst")
    ss.pack_images(tmp_path / "src", tmp_path / "dst", keys="number", overwrite=True)
    assert [key for key, _ in read_by_streamshard(str(tmp_path / "dst"))] == ["000000"]


@pytest.mark.parametrize("shard_size", ["1MB", "3KB"])  # both in one shard, or each in its own
def test_two_files_of_one_key_are_refused_by_name_or_skipped(
    tmp_path: Path, shard_size: str
) -> None:
    files = {"a.jpeg": WHOLE, "a.jpg": WHOLE, "b.jpg": WHOLE}
    write_files(tmp_path / "src", files)
    options: dict[str, Any] = {"shard_size": shard_size, "shuffle": False}
    with pytest.raises((SampleError, PackError), match=r"key 'a' is there twice"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst", **options)
    options |= {"on_error": "skip", "overwrite": True}
    summary = ss.pack_images(tmp_path / "src", tmp_path / "dst", **options)
    assert summary.samples == 2
    assert len(summary.skipped) == 1


def test_a_destination_that_is_not_empty_is_refused_before_anything_is_read(
    tmp_path: Path,
) -> None:
    write_files(tmp_path / "src", {"a.jpg": b"no image"})
    write_files(tmp_path / "dst", {"mine.txt": b"x"})
    with pytest.raises(UsageError, match=r"dst holds mine\.txt already"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst")
    assert files_of(tmp_path / "dst") == {"mine.txt": b"x"}
