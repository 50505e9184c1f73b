from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.errors import PackError, UsageError
from streamshard.pack.choose import Globs, parse_split
from streamshard.pack.deliver import SplitSummary
from tests.pack.sources import (
    Samples,
    class_folders,
    files_of,
    image_bytes,
    read_by_streamshard,
    ring,
    write_files,
    write_tar,
)

FRACTIONS: dict[str, Any] = {"train": 0.7, "val": 0.2, "rest": 0.1}
Pack = Callable[..., Any]


def images(root: Path) -> Pack:
    class_folders(root / "src", each=20)
    return lambda dst, **options: ss.pack_images(root / "src", dst, **options)


def table(root: Path) -> Pack:
    class_folders(root / "src", each=20)
    paths = [f"{name}/{number}.png" for name in ("ant", "bee", "cat") for number in range(20)]
    rows = [f"{path},{path.partition('/')[0]}" for path in paths]
    write_files(root / "src", {"t.csv": "\n".join(["path,label", *rows]).encode()})
    return lambda dst, **options: ss.pack_table(
        root / "src" / "t.csv", dst, image="path", label="label", **options
    )


def numbered(root: Path) -> Pack:
    """A table whose keys are numbers."""
    pack = table(root)
    return lambda dst, **options: pack(dst, keys="number", **options)


def tars(root: Path) -> Pack:
    for number in range(5):
        members = [(f"{n:03d}.txt", b"%d" % n) for n in range(12 * number, 12 * number + 12)]
        write_tar(root / "src" / f"{number}.tar", members)
    return lambda dst, **options: ss.pack_tars(root / "src", dst, **options)


def graphs(root: Path) -> Pack:
    return lambda dst, **options: ss.pack_graphs([ring(n) for n in range(3, 63)], dst, **options)


def graph_files(root: Path) -> Pack:
    rows = [json.dumps({"x": [[0.5]], "edge_index": [[], []], "y": n}) for n in range(60)]
    write_files(root, {"g.jsonl": "\n".join(rows).encode()})
    return lambda dst, **options: ss.pack_graphs(root / "g.jsonl", dst, **options)


SOURCES = [images, table, numbered, tars, graphs, graph_files]


def keys_of(dataset: ss.ShardDataset) -> list[str]:
    return [key for batch in ss.StreamLoader(dataset) for key in batch["__key__"]]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_split_law(tmp_path: Path, source: Callable[[Path], Pack]) -> None:
    """Disjoint, together all, and the split of the pack is the split of the packed."""
    pack = source(tmp_path)
    pack(tmp_path / "whole")
    summary = pack(tmp_path / "dst", split=FRACTIONS)
    assert isinstance(summary, SplitSummary)
    whole = read_by_streamshard(str(tmp_path / "whole"))
    dataset = ss.ShardDataset(
        str(tmp_path / "whole"), batch_size=8, tail="exact", parts=None, transform=None
    )
    together: Samples = []
    for name, part in dataset.split(**FRACTIONS).items():
        found = read_by_streamshard(str(tmp_path / "dst" / name))
        assert sorted(key for key, _ in found) == sorted(keys_of(part))
        assert summary.splits[name].samples == len(found)
        together += found
    assert len(together) == len(whole) == summary.samples == 60
    assert dict(together) == dict(whole)
    shards = [ss.open(str(tmp_path / name)) for name in ("whole", "dst/train", "dst/val")]
    assert shards[0].classes == shards[1].classes == shards[2].classes


def test_the_order_within_a_split_is_that_of_the_whole(tmp_path: Path) -> None:
    pack = images(tmp_path)
    pack(tmp_path / "whole", seed=3)
    pack(tmp_path / "dst", seed=3, split={"a": 0.5, "b": 0.5})
    whole = [key for key, _ in read_by_streamshard(str(tmp_path / "whole"))]
    for name in "ab":
        keys = [key for key, _ in read_by_streamshard(str(tmp_path / "dst" / name))]
        assert keys == [key for key in whole if key in set(keys)]


def test_splits_have_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    pack = images(tmp_path)
    for workers in (0, 2):
        pack(tmp_path / f"{workers}", split={"a": 0.5, "b": 0.4}, resize=5, workers=workers)
    assert files_of(tmp_path / "0") == files_of(tmp_path / "2")


def test_a_split_summary_is_that_of_all_splits(tmp_path: Path) -> None:
    pack = images(tmp_path)
    (tmp_path / "src" / "ant" / "3.png").write_bytes(b"")
    summary = pack(tmp_path / "dst", split={"a": 0.5, "b": 0.5}, on_error="skip")
    assert summary.samples == sum(split.samples for split in summary.splits.values()) == 59
    assert summary.bytes == sum(path.stat().st_size for path in tmp_path.glob("dst/*/*.tar"))
    assert len(summary.skipped) == 1
    for name, split in summary.splits.items():
        assert split.fingerprint == ss.open(str(tmp_path / "dst" / name)).manifest.fingerprint


def test_inputs_that_belong_to_no_split_are_counted(tmp_path: Path) -> None:
    summary = images(tmp_path)(tmp_path / "dst", split={"a": 0.3, "b": 0.3})
    assert summary.notes == [f"{60 - summary.samples} inputs belong to no split"]


def test_a_row_without_a_key_is_told_with_the_first_split(tmp_path: Path) -> None:
    pack = table(tmp_path)
    with (tmp_path / "src" / "t.csv").open("a") as file:
        file.write("\n,ant\n")
    summary = pack(tmp_path / "dst", split={"a": 0.1, "b": 0.1}, on_error="skip")
    assert len(summary.splits["a"].skipped) == 1
    assert "t.csv:62: column 'path': no path there" in summary.skipped[0]


def test_a_split_that_would_be_empty_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"a.png": image_bytes(), "b.png": image_bytes()})
    with pytest.raises(PackError, match="split tiny=1e-06 gets none of 2 samples"):
        ss.pack_images(tmp_path / "src", tmp_path / "dst", split={"most": 0.9, "tiny": 1e-6})
    assert files_of(tmp_path / "dst") == {}


def test_splits_go_only_where_nothing_else_lies(tmp_path: Path) -> None:
    pack = images(tmp_path)
    pack(tmp_path / "dst")
    with pytest.raises(UsageError, match=r"dst holds \.streamshard already"):
        pack(tmp_path / "dst", split=FRACTIONS, overwrite=True)
    pack(tmp_path / "two", split=FRACTIONS)
    before = files_of(tmp_path / "two")
    with pytest.raises(UsageError, match="--overwrite"):
        pack(tmp_path / "two", split=FRACTIONS)
    pack(tmp_path / "two", split=FRACTIONS, overwrite=True)
    assert files_of(tmp_path / "two") == before


def test_graphs_that_can_be_read_only_once_are_not_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only once can't be split; give a list"):
        ss.pack_graphs((ring(n) for n in (3, 4)), tmp_path / "dst", split={"a": 0.5})


@pytest.mark.parametrize(
    "text", ["", "train", "train=", "train=x", "a=0.5,a=0.5", "a=0.7,b=0.7", "a=0", "../a=0.5"]
)
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_split(text)


def test_a_split_is_read_as_written() -> None:
    assert parse_split("train=0.9, val=.1") == {"train": 0.9, "val": 0.1}


def test_globs_take_what_one_includes_and_none_excludes() -> None:
    assert Globs().accept("anything")
    globs = Globs(("a/*", "*.jpg"), ("*/x*",))
    assert globs.accept("a/b/c")
    assert globs.accept("z.jpg")
    assert globs.accept("key", "a/1"), "any of its names"
    assert not globs.accept("b/c.png")
    assert not globs.accept("a/x1.jpg")


def test_images_left_out_by_patterns_are_as_though_they_were_not_there(tmp_path: Path) -> None:
    pack = images(tmp_path)
    write_files(tmp_path / "src", {"bee/odd.gif": image_bytes("GIF")})
    summary = pack(tmp_path / "dst", include=["ant/*", "bee/*"], exclude=["*.gif", "ant/1?.png"])
    assert summary.samples == 30
    assert summary.notes == ["31 inputs were left out by --include and --exclude"]
    assert ss.open(str(tmp_path / "dst")).classes == ["ant", "bee"]
    with pytest.raises(PackError, match="none of 61 images is left by --include"):
        pack(tmp_path / "none", include=["dog/*"])


def test_patterns_choose_graphs_by_key(tmp_path: Path) -> None:
    for source in (graphs, graph_files):
        dst = tmp_path / source.__name__
        summary = source(tmp_path)(dst, include=["00001?"], exclude=["*3"])
        assert summary.samples == 9
        assert summary.notes == ["51 inputs were left out by --include and --exclude"]
    stream = (ring(n) for n in range(3, 23))
    assert ss.pack_graphs(stream, tmp_path / "stream", exclude=["*1"]).samples == 18
