"""`streamshard pack table`, `pack tars`, and what all packs take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from tests.cli.command import Here, streamshard_command
from tests.pack.sources import class_folders, files_of, write_files, write_tar

HOOK = b"def twice(sample):\n    return [sample, sample]\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with photos, tables of them, tars, and a function."""
    class_folders(tmp_path / "photos", ["ant", "bee"], each=10)
    paths = [f"photos/{name}/{number}.png" for name in ("ant", "bee") for number in range(10)]
    rows = [f"{path},{path.split('/')[1]},{n}" for n, path in enumerate(paths)]
    labels = {path.removeprefix("photos/"): n for n, path in enumerate(paths)}
    for number in range(3):
        write_tar(
            tmp_path / "tars" / f"{number}.tar", [(f"{number}-{n}.txt", b"x") for n in range(5)]
        )
    return write_files(
        tmp_path,
        {
            "t.csv": "\n".join(["path,kind,number", *rows]).encode(),
            "labels.json": json.dumps(labels).encode(),
            "hook.py": HOOK,
        },
    )


def test_pack_table_writes_what_the_api_writes(place: Path) -> None:
    done = streamshard_command(
        *("pack", "table", "t.csv", "dst", "--image", "path", "--label", "kind", "--json"),
        *("--max-side", 8, "--format", "jpg", "--quality", 70, "--keys", "number", "--seed", 3),
        *("--workers", 1, "--shard-size", "4KB", "--exclude", "*/7.png"),
        cwd=place,
    )
    assert (done.status, done.err) == (0, "")
    options: dict[str, Any] = {"max_side": 8, "format": "jpg", "quality": 70, "keys": "number"}
    options |= {"seed": 3, "shard_size": "4KB", "exclude": ["*/7.png"], "workers": 0}
    summary = ss.pack_table(place / "t.csv", place / "api", image="path", label="kind", **options)
    assert files_of(place / "dst") == files_of(place / "api")
    result = json.loads(done.out)
    assert result["samples"] == summary.samples == 18
    assert result["notes"] == ["2 inputs were left out by --include and --exclude"]


def test_pack_mds_and_parquet_write_what_the_api_writes(tmp_path: Path, here: Here) -> None:
    fixtures = Path(__file__).parents[1] / "pack"
    dropped = ["depth", "boxes"]
    options = ("--resize", 4, "--seed", 2, "--workers", 0, "--shard-size", "9KB")
    drop = ("--drop", dropped[0], "--drop", "meta")
    for name, given in (
        ("mds", (fixtures / "mds/encodings", *drop, "--image", "mask", "--label", "uint8")),
        ("parquet", (fixtures / "parquet", "--drop", "boxes", "--drop", "depth")),
    ):
        done = here("pack", name, given[0], f"{name}-cli", *given[1:], *options, cwd=tmp_path)
        assert (done.status, done.err) == (0, "")
    api: dict[str, Any] = {"resize": 4, "seed": 2, "workers": 0, "shard_size": "9KB"}
    mds = fixtures / "mds/encodings"
    columns: dict[str, Any] = {"drop": ["depth", "meta"], "image": "mask", "label": "uint8"}
    ss.pack_mds(mds, tmp_path / "mds-api", **columns, **api)
    ss.pack_parquet(fixtures / "parquet", tmp_path / "parquet-api", drop=dropped, **api)
    for name in ("mds", "parquet"):
        assert files_of(tmp_path / f"{name}-cli") == files_of(tmp_path / f"{name}-api")


def test_pack_tars_writes_what_the_api_writes(place: Path, here: Here) -> None:
    done = here(
        "pack", "tars", "tars/{0..2}.tar", "dst", "--seed", 2, "--include", "*-3", cwd=place
    )
    assert done.status == 0
    ss.pack_tars(f"{place}/tars", place / "api", seed=2, include=["*-3"])
    assert files_of(place / "dst") == files_of(place / "api")
    assert done.out.startswith("dst: 3 samples in 1 shards")


@pytest.mark.parametrize(
    "source",
    [
        ("images", "photos", "dst", "--labels", "labels.json"),
        ("table", "t.csv", "dst", "--image", "path"),
        ("tars", "tars", "dst"),
    ],
    ids=lambda source: source[0],
)
def test_every_pack_takes_a_split_and_a_map(
    place: Path, here: Here, source: tuple[str, ...]
) -> None:
    flags = ("--split", "train=0.7,val=0.3", "--map", "hook.py:twice", "--workers", 0)
    done = here("pack", *source, *flags, cwd=place)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["dst/train", "dst/val"]
    counts = [len(ss.open(str(place / "dst" / name))) for name in ("train", "val")]
    assert sum(counts) == (30 if source[0] == "tars" else 40)
    again = here("pack", *source, *flags, "--overwrite", "--json", cwd=place)
    result = json.loads(again.out)
    assert [result["splits"][name]["samples"] for name in ("train", "val")] == counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table", "t.csv", "dst"), "Missing option '--image'"),
        (
            ("table", "t.csv", "dst", "--image", "x"),
            "t.csv: no column 'x'; it has path, kind, number",
        ),
        (("tars", "none-{0..3}.tar", "dst"), "./none-0.tar: no such tar"),
        (("images", "photos", "dst", "--split", "train"), "--split 'train'; NAME=FRACTION"),
        (("images", "photos", "dst", "--map", "hook.py:once"), "there is no callable 'once'"),
        (("images", "photos", "dst", "--resize", 4, "--max-side", 4), "choose one"),
    ],
)
def test_what_is_wrong_is_one_line(
    place: Path, here: Here, arguments: tuple[Any, ...], message: str
) -> None:
    done = here("pack", *arguments, cwd=place)
    assert done.status in (1, 2)
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert message in done.err
    assert not (place / "dst").exists()


def test_skipped_rows_are_listed_with_file_and_line(place: Path, here: Here) -> None:
    (place / "photos" / "bee" / "4.png").unlink()
    table = ("pack", "table", "t.csv", "dst", "--image", "path")
    refused = here(*table, cwd=place)
    assert refused.status == 1
    assert "t.csv:16: photos/bee/4.png: No such file" in refused.err
    done = here(*table, "--on-error", "skip", "--json", cwd=place)
    result = json.loads(done.out)
    assert (result["samples"], len(result["skipped"])) == (19, 1)
    assert result["skipped"][0].startswith("t.csv:16: ")
