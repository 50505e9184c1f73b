from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import streamshard as ss
from streamshard.errors import UsageError
from tests.pack.sources import (
    class_folders,
    files_of,
    image_bytes,
    read_by_streamshard,
    write_files,
)


def keys_of(folder: Path) -> list[str]:
    return [key for key, _ in read_by_streamshard(str(folder))]


def test_the_class_is_the_place_of_its_folder_in_the_sorted_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "src", ["cat", "ant", "Zebra", "bee"], each=3)
    ss.pack_images(tmp_path / "src", tmp_path / "dst")
    shards = ss.open(str(tmp_path / "dst"))
    assert shards.classes == ["Zebra", "ant", "bee", "cat"]
    assert len(shards) == 12
    for sample in (shards[number] for number in range(12)):
        assert shards.classes[sample["cls"]] == sample["__key__"].partition("/")[0]


def test_the_class_is_the_first_folder_however_deep_the_image_lies(tmp_path: Path) -> None:
    names = {"ant/1.png": b"", "ant/wild/red/1.png": b"", "bee/tame/1.png": b""}
    write_files(tmp_path / "src", {name: image_bytes() for name in names})
    ss.pack_images(tmp_path / "src", tmp_path / "dst", shuffle=False)
    shards = ss.open(str(tmp_path / "dst"))
    assert shards.classes == ["ant", "bee"]
    assert [(s["__key__"], s["cls"]) for s in (shards[number] for number in range(3))] == [
        ("ant/1", 0),
        ("ant/wild/red/1", 0),
        ("bee/tame/1", 1),
    ]


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {f"{name}.png": image_bytes() for name in "abc"})
    summary = ss.pack_images(tmp_path / "src", tmp_path / "dst")
    shards = ss.open(str(tmp_path / "dst"))
    assert shards.classes is None
    assert set(shards[0]) == {"__key__", "png"}
    assert summary.samples == 3


def test_images_keep_their_bytes(tmp_path: Path) -> None:
    for format, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp")):
        files = {f"{seed}.{suffix}": image_bytes(format, seed=seed) for seed in range(4)}
        source, packed = tmp_path / suffix, tmp_path / f"{suffix}-packed"
        write_files(source, files)
        ss.pack_images(source, packed)
        assert {
            f"{key}.{name}": data
            for key, parts in read_by_streamshard(str(packed))
            for name, data in parts.items()
        } == files


def test_all_spellings_of_jpeg_are_the_part_jpg(tmp_path: Path) -> None:
    jpeg = image_bytes("JPEG")
    write_files(tmp_path / "src", dict.fromkeys(["a.JPEG", "b.jpeg", "c.JPG", "d.jpg"], jpeg))
    ss.pack_images(tmp_path / "src", tmp_path / "dst", shuffle=False)
    found = read_by_streamshard(str(tmp_path / "dst"))
    assert found == [(key, {"jpg": jpeg}) for key in "abcd"]


def test_keys_are_paths_or_numbers_in_sorted_order(tmp_path: Path) -> None:
    class_folders(tmp_path / "src", ["bee", "ant"], each=2)
    ss.pack_images(tmp_path / "src", tmp_path / "path", shuffle=False)
    assert keys_of(tmp_path / "path") == ["ant/0", "ant/1", "bee/0", "bee/1"]
    ss.pack_images(tmp_path / "src", tmp_path / "number", shuffle=False, keys="number")
    assert keys_of(tmp_path / "number") == ["000000", "000001", "000002", "000003"]


def test_a_number_names_one_image_in_whatever_order_they_are_packed(tmp_path: Path) -> None:
    class_folders(tmp_path / "src")
    for seed in (0, 1):
        ss.pack_images(tmp_path / "src", tmp_path / f"{seed}", seed=seed, keys="number")
    one, other = (read_by_streamshard(str(tmp_path / f"{seed}")) for seed in (0, 1))
    assert one != other
    assert dict(one) == dict(other)


def test_escaped_keys_are_counted_in_a_note(tmp_path: Path) -> None:
    names = ["plain.png", "two words.png", "v1.2.png", "grün.png", os.fsdecode(b"caf\xe9.png")]
    write_files(tmp_path / "src", dict.fromkeys(names, image_bytes()))
    summary = ss.pack_images(tmp_path / "src", tmp_path / "dst", shuffle=False)
    assert set(keys_of(tmp_path / "dst")) == {
        "plain",
        "two%20words",
        "v1%2E2",
        "gr%C3%BCn",
        "caf%E9",
    }
    assert any(note.startswith("4 keys ") for note in summary.notes)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    shown = {"ant/1.png": image_bytes()}
    hidden = {".DS_Store": b"x", "ant/._1.png": b"x", ".thumbnails/1.png": b"x", ".x/y.jpg": b"x"}
    write_files(tmp_path / "src", {**shown, **hidden})
    ss.pack_images(tmp_path / "src", tmp_path / "dst")
    assert keys_of(tmp_path / "dst") == ["ant/1"]


def test_files_that_are_no_images_are_counted_in_a_note(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"a.png": image_bytes(), "README": b"x", "labels.csv": b"x"})
    summary = ss.pack_images(tmp_path / "src", tmp_path / "dst")
    assert summary.samples == 1
    assert any(note.startswith("2 files that are no images") for note in summary.notes)


def test_a_file_without_a_suffix_is_no_image_whatever_its_name(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"a.png": image_bytes(), "jpg": b"x", "png": b"x"})
    assert ss.pack_images(tmp_path / "src", tmp_path / "dst").samples == 1


def test_a_class_folder_behind_a_link_is_packed_too(tmp_path: Path) -> None:
    class_folders(tmp_path / "src", ["ant"], each=2)
    class_folders(tmp_path / "elsewhere", ["bee"], each=2)
    (tmp_path / "src" / "bee").symlink_to(tmp_path / "elsewhere" / "bee")
    ss.pack_images(tmp_path / "src", tmp_path / "dst", shuffle=False)
    assert keys_of(tmp_path / "dst") == ["ant/0", "ant/1", "bee/0", "bee/1"]


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_resized_images_have_the_shorter_side_asked_for(tmp_path: Path, format: Any) -> None:
    sizes = {"wide": (60, 30), "high": (25, 50), "small": (4, 3)}
    files = {f"{name}.png": image_bytes(size=size) for name, size in sizes.items()}
    write_files(tmp_path / "src", files)
    ss.pack_images(tmp_path / "src", tmp_path / "dst", resize=10, format=format, workers=0)
    found = dict(read_by_streamshard(str(tmp_path / "dst")))
    opened = {key: Image.open(io.BytesIO(parts[format])) for key, parts in found.items()}
    expected = {"wide": (20, 10), "high": (10, 20), "small": (13, 10)}
    assert {key: image.size for key, image in opened.items()} == expected
    assert {image.format for image in opened.values()} == {format.upper().replace("JPG", "JPEG")}


def test_a_resized_image_looks_like_the_one_before(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[:48, None], (1, 64))] * 2)[:3]
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    write_files(tmp_path / "src", {"a.png": file.getvalue()})
    ss.pack_images(tmp_path / "src", tmp_path / "dst", resize=12, workers=0)
    image = ss.open(str(tmp_path / "dst"))[0]["png"].float()
    assert image.shape == (3, 12, 16)
    blocks = pixels.reshape(3, 12, 4, 16, 4).mean((2, 4))
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert np.abs(image.numpy() - blocks)[inner].max() < 3


@pytest.mark.parametrize("suffix", ["bmp", "gif", "tif", "ppm"])
def test_resizing_a_format_that_we_do_not_write_says_so(tmp_path: Path, suffix: str) -> None:
    format = {"tif": "TIFF"}.get(suffix, suffix.upper())
    write_files(tmp_path / "src", {f"a.{suffix}": image_bytes(format)})
    with pytest.raises(ss.errors.StreamshardError, match=f"{suffix}.*--format"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst", resize=4, workers=0)
    assert ss.pack_images(tmp_path / "src", tmp_path / "dst", resize=4, format="png", workers=0)


def test_npy_is_a_uint8_array_of_height_width_channels(tmp_path: Path) -> None:
    data = image_bytes(size=(9, 7))
    write_files(tmp_path / "src", {"a.png": data})
    ss.pack_images(tmp_path / "src", tmp_path / "dst", format="npy", workers=0)
    array = np.load(io.BytesIO(read_by_streamshard(str(tmp_path / "dst"))[0][1]["npy"]))
    assert (array.dtype, array.shape) == (np.uint8, (7, 9, 3))
    assert np.array_equal(array, np.asarray(Image.open(io.BytesIO(data))))
    tensor = ss.open(str(tmp_path / "dst"))[0]["npy"]
    assert (tensor.dtype, tensor.shape) == (torch.uint8, (7, 9, 3))


def test_a_lower_quality_takes_fewer_bytes(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"a.png": image_bytes(size=(64, 64))})
    sizes = []
    for quality in (20, 60, 95):
        dst = tmp_path / f"{quality}"
        ss.pack_images(tmp_path / "src", dst, format="jpg", quality=quality, workers=0)
        sizes.append(len(read_by_streamshard(str(dst))[0][1]["jpg"]))
    assert sizes == sorted(set(sizes))


def test_one_format_is_made_of_several(tmp_path: Path) -> None:
    files = {"a.png": image_bytes("PNG"), "b.jpg": image_bytes("JPEG"), "c.gif": image_bytes("GIF")}
    write_files(tmp_path / "src", files)
    ss.pack_images(tmp_path / "src", tmp_path / "dst", format="png", workers=0, shuffle=False)
    found = read_by_streamshard(str(tmp_path / "dst"))
    assert [(key, list(parts)) for key, parts in found] == [(key, ["png"]) for key in "abc"]


def test_the_order_is_random_by_the_seed_and_sorted_without_shuffle(tmp_path: Path) -> None:
    class_folders(tmp_path / "src", each=10)
    orders = {}
    settings: list[tuple[str, dict[str, Any]]] = [
        ("sorted", {"shuffle": False}),
        ("default", {}),
        ("zero", {"seed": 0}),
        ("one", {"seed": 1}),
    ]
    for name, options in settings:
        ss.pack_images(tmp_path / "src", tmp_path / name, **options)
        orders[name] = keys_of(tmp_path / name)
    assert orders["sorted"] == sorted(orders["sorted"])
    assert orders["default"] == orders["zero"]
    assert len({tuple(order) for order in orders.values()}) == 3
    assert len({frozenset(order) for order in orders.values()}) == 1


def test_the_bytes_do_not_depend_on_who_encodes(tmp_path: Path) -> None:
    class_folders(tmp_path / "src", each=40)  # more samples than travel to a worker together

    def packed(name: str, **options: Any) -> dict[str, bytes]:
        ss.pack_images(
            tmp_path / "src",
            tmp_path / name,
            shard_size=30_000,
            resize=5,
            format="jpg",
            **options,
        )
        return files_of(tmp_path / name)

    alone = packed("0", workers=0)
    assert len(alone) > 6
    assert packed("1", workers=1) == alone
    assert packed("3", workers=3) == alone
    assert packed("forkserver", workers=1, start_method="forkserver") == alone
    with ThreadPoolExecutor(2) as threads:
        assert packed("threads", executor=threads) == alone
        assert threads.submit(int, "7").result() == 7  # it is ours still


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quality", 0),
        ("quality", 101),
        ("resize", 0),
        ("format", "gif"),
        ("keys", "hash"),
        ("workers", -1),
        ("on_error", "ignore"),
        ("shard_size", "large"),
    ],
)
def test_an_argument_that_breaks_its_rule_is_named(tmp_path: Path, name: str, value: Any) -> None:
    write_files(tmp_path / "src", {"a.png": image_bytes()})
    options: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=rf"size.*{value}|{name}.*{value}"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst", **options)
    assert files_of(tmp_path / "dst") == {}
