from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.errors import PackError, UsageError
from streamshard.pack.labels import Labels, read_labels
from tests.pack.sources import image_bytes, write_files

PATHS = ["x/1.png", "x/2.png", "y/3.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_files(tmp_path / "src", {path: image_bytes() for path in PATHS})


def label_file(path: Path, labels: dict[str, Any]) -> Path:
    """The labels as CSV or JSON, as the suffix says."""
    if path.suffix == ".json":
        path.write_text(json.dumps(labels))
    else:
        rows = [f"{name},{label}" for name, label in labels.items()]
        path.write_text("\n".join(["id,label", *rows]) + "\n")
    return path


def packed(photos: Path, labels: Path, **options: Any) -> dict[str, Any]:
    dst = photos.parent / f"dst{len(list(photos.parent.iterdir()))}"
    ss.pack_images(photos, dst, labels=labels, **options)
    shards = ss.open(str(dst))
    samples = [shards[number] for number in range(len(shards))]
    names = shards.classes
    return {str(s["__key__"]): s["cls"] if names is None else names[s["cls"]] for s in samples}


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_labels_come_from_a_file_and_not_from_folders(photos: Path, suffix: str) -> None:
    labels = {"x/1.png": "cat", "x/2.png": "ant", "y/3.png": "cat"}
    file = label_file(photos.parent / f"labels{suffix}", labels)
    found = packed(photos, file)
    assert found == {"x/1": "cat", "x/2": "ant", "y/3": "cat"}


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_integers_are_numbers_and_paths_may_lack_their_suffix(photos: Path, suffix: str) -> None:
    file = label_file(photos.parent / f"labels{suffix}", {"x/1": 5, "x/2": -1, "y/3": 1000})
    assert packed(photos, file) == {"x/1": 5, "x/2": -1, "y/3": 1000}


def test_a_flat_folder_or_one_without_class_folders_can_have_labels(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "src", {"a.png": image_bytes(), "sub/b.png": image_bytes()})
    (photos / "empty").mkdir()
    file = label_file(tmp_path / "labels.csv", {"a": "one", "sub/b": "two"})
    assert packed(photos, file) == {"a": "one", "sub/b": "two"}


def test_an_image_without_a_label_is_named_and_a_label_without_an_image_counted(
    photos: Path,
) -> None:
    file = label_file(photos.parent / "labels.csv", {"x/1": "a"})
    with pytest.raises(PackError, match=r"labels\.csv: no label for x/2\.png and 1 others"):
        packed(photos, file)
    file = label_file(photos.parent / "labels.csv", dict.fromkeys(["x/1", "x/2", "y/3", "z"], "a"))
    summary = ss.pack_images(photos, photos.parent / "dst", labels=file)
    assert summary.notes == ["1 labels belong to no image"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.csv", "id,label\nx/1,a\nx/1,b\n", r"l\.csv:3: x/1 has a label already"),
        ("l.csv", "id,label\nx/1,\n", r"l\.csv:2: x/1: no label there"),
        ("l.csv", "id,label\nx/1\n", r"l\.csv:2: 1 columns"),
        ("l.csv", "id,label,more\nx/1,a,b\n", r"l\.csv: 3 columns; a path and a label"),
        ("l.json", '{"x/1": 0.5}', r"l\.json: x/1: label 0\.5 is neither"),
        ("l.json", '{"x/1": 3, "x/2": "a"}', r"l\.json: label 'a' is text, 3 an integer"),
        ("l.json", "[1]", r"l\.json: a list; one object"),
        ("l.json", "{", r"l\.json: not JSON"),
        ("l.txt", "", r"l\.txt: a \.csv or a \.json is wanted"),
    ],
)
def test_what_is_no_file_of_labels_is_refused(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((PackError, UsageError), match=reason):
        read_labels(str(tmp_path / name))


def test_labels_are_numbered_by_name_whatever_their_order() -> None:
    labels = Labels("here", as_text=True)
    for line, name in enumerate(["b", "a", "", "c", "a"]):
        labels.add(name, line)
    assert labels.numbers().tolist() == [1, 0, 0, 2, 0]
    assert labels.classes == ["a", "b", "c"]
