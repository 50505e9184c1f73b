from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

import streamshard as ss
from streamshard.errors import PackError, SampleError, StoreError, UsageError
from tests.pack.sources import files_of, image_bytes, read_by_streamshard, write_files

ROWS = [
    {"path": "a/1.png", "kind": "cat", "note": "first"},
    {"path": "a/2.png", "kind": "ant", "note": "two\nlines, and a comma"},
    {"path": "b/3.png", "kind": "bee", "note": 'a "quote"'},
    {"path": "b/4.png", "kind": "ant", "note": ""},
]


def photos(root: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    """A folder with the images that the rows name."""
    files = {row["path"]: image_bytes(seed=number) for number, row in enumerate(rows)}
    return write_files(root, files)


def as_csv(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_jsonl(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_parquet(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=2)
    return path


WRITERS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


def samples_of(folder: Path) -> dict[str, dict[str, Any]]:
    shards = ss.open(str(folder))
    return {str(s["__key__"]): s for s in (shards[number] for number in range(len(shards)))}


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_row_is_its_image_its_label_and_the_other_columns(tmp_path: Path, kind: str) -> None:
    table = WRITERS[kind](photos(tmp_path / "src") / f"table.{kind}")
    summary = ss.pack_table(table, tmp_path / "dst", image="path", label="kind")
    assert summary.samples == 4
    found = dict(read_by_streamshard(str(tmp_path / "dst")))
    for number, row in enumerate(ROWS):
        parts = found[row["path"].removesuffix(".png")]
        assert parts["png"] == image_bytes(seed=number)
        assert parts["cls"] == b"%d" % ["ant", "bee", "cat"].index(row["kind"])
        assert json.loads(parts["json"]) == {"note": row["note"]}
    assert ss.open(str(tmp_path / "dst")).classes == ["ant", "bee", "cat"]


def test_csv_jsonl_and_parquet_of_the_same_rows_are_the_same_dataset(tmp_path: Path) -> None:
    source = photos(tmp_path / "src")
    packed = []
    for kind, write in sorted(WRITERS.items()):
        table = write(source / f"table.{kind}")
        ss.pack_table(table, tmp_path / kind, image="path", label="kind")
        packed.append(files_of(tmp_path / kind))
    assert packed[0] == packed[1] == packed[2]


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_labels_that_are_integers_stay_numbers(tmp_path: Path, kind: str) -> None:
    rows = [{"path": f"{n}.png", "label": n * 7 - 7} for n in range(4)]
    table = WRITERS[kind](photos(tmp_path / "src", rows) / f"table.{kind}", rows)
    ss.pack_table(table, tmp_path / "dst", image="path", label="label")
    assert ss.open(str(tmp_path / "dst")).classes is None
    found = samples_of(tmp_path / "dst")
    assert {key: sample["cls"] for key, sample in found.items()} == {
        "0": -7,
        "1": 0,
        "2": 7,
        "3": 14,
    }
    assert set(found["0"]) == {"__key__", "png", "cls"}, "no further column, no part json"


def test_numbers_beside_names_are_names_in_csv_and_so_is_a_padded_number(tmp_path: Path) -> None:
    for labels in (["1", "x", "10", "2"], ["007", "1", "2", "3"]):
        rows = [{"path": f"{n}.png", "label": label} for n, label in enumerate(labels)]
        table = as_csv(photos(tmp_path / labels[0], rows) / "table.csv", rows)
        ss.pack_table(table, tmp_path / f"{labels[0]}-dst", image="path", label="label")
        assert ss.open(str(tmp_path / f"{labels[0]}-dst")).classes == sorted(labels)


def test_without_a_label_column_there_is_no_cls(tmp_path: Path) -> None:
    table = as_csv(photos(tmp_path / "src") / "table.csv")
    ss.pack_table(table, tmp_path / "dst", image="path")
    found = samples_of(tmp_path / "dst")
    assert set(found["a/1"]) == {"__key__", "png", "json"}
    assert found["a/1"]["json"] == {"kind": "cat", "note": "first"}
    assert ss.open(str(tmp_path / "dst")).classes is None


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_bytes_do_not_depend_on_who_encodes(tmp_path: Path, kind: str) -> None:
    rows = [{"path": f"{n}.png", "label": f"{n % 3}", "n": f"{n}"} for n in range(80)]
    table = WRITERS[kind](photos(tmp_path / "src", rows) / f"table.{kind}", rows)

    def packed(name: str, **options: Any) -> dict[str, bytes]:
        ss.pack_table(
            *(table, tmp_path / name),
            **{"image": "path", "label": "label", "shard_size": 30_000, **options},
            resize=5,
            format="jpg",
        )
        return files_of(tmp_path / name)

    alone = packed("0", workers=0)
    assert packed("2", workers=2) == alone
    assert packed("spawned", workers=1, start_method="forkserver") == alone


def test_keys_are_paths_without_what_leads_elsewhere_or_numbers_of_rows(tmp_path: Path) -> None:
    rows = [{"path": path} for path in ("./a.png", "x/../b.png", f"{tmp_path}/src/c d.png")]
    write_files(tmp_path / "src", {f"{n}.png": image_bytes() for n in ("a", "b", "c d")})
    (tmp_path / "src" / "x").mkdir()
    table = as_jsonl(tmp_path / "src" / "table.jsonl", rows)
    ss.pack_table(table, tmp_path / "path", image="path", shuffle=False)
    absolute = f"{tmp_path}/src/c%20d".lstrip("/")
    assert [key for key, _ in read_by_streamshard(str(tmp_path / "path"))] == ["a", "b", absolute]
    ss.pack_table(table, tmp_path / "number", image="path", keys="number", seed=5)
    assert set(samples_of(tmp_path / "number")) == {"000000", "000001", "000002"}


def test_a_row_has_one_number_in_whatever_order_rows_are_packed(tmp_path: Path) -> None:
    table = as_csv(photos(tmp_path / "src") / "table.csv")
    for seed in (0, 1):
        ss.pack_table(table, tmp_path / f"{seed}", image="path", keys="number", seed=seed)
    one, other = (read_by_streamshard(str(tmp_path / f"{seed}")) for seed in (0, 1))
    assert one != other
    assert dict(one) == dict(other)
    assert dict(one)["000002"]["png"] == image_bytes(seed=2)


def test_compressed_and_remote_tables_name_images_beside_them(tmp_path: Path) -> None:
    text = as_csv(photos(tmp_path / "src") / "table.csv").read_bytes()
    (tmp_path / "src" / "table.csv.gz").write_bytes(gzip.compress(text))
    ss.pack_table(tmp_path / "src" / "table.csv.gz", tmp_path / "gz", image="path", label="kind")
    memory = fsspec.filesystem("memory")
    try:
        for name, data in files_of(tmp_path / "src").items():
            with fsspec.open(f"memory://photos/{name}", "wb") as file:
                file.write(data)
        ss.pack_table("memory://photos/table.csv", tmp_path / "url", image="path", label="kind")
    finally:
        memory.rm("/photos", recursive=True)
    assert files_of(tmp_path / "gz") == files_of(tmp_path / "url")


def test_columns_of_parquet_that_json_has_no_word_for_are_text(tmp_path: Path) -> None:
    import datetime

    rows = [{"path": "a.png", "day": datetime.date(2020, 1, 2), "list": [1, 2], "none": None}]
    table = as_parquet(photos(tmp_path / "src", rows) / "table.parquet", rows)
    ss.pack_table(table, tmp_path / "dst", image="path")
    assert samples_of(tmp_path / "dst")["a"]["json"] == {
        "day": "2020-01-02",
        "list": [1, 2],
        "none": None,
    }


def test_several_formats_become_one(tmp_path: Path) -> None:
    files = {"a.png": image_bytes("PNG"), "b.jpeg": image_bytes("JPEG"), "c": image_bytes("GIF")}
    rows = [{"path": name} for name in files]
    table = as_csv(write_files(tmp_path / "src", files) / "table.csv", rows)
    with pytest.raises(PackError, match=r"several formats .*b\.jpeg.*a\.png.*--format"):
        ss.pack_table(table, tmp_path / "dst", image="path")
    ss.pack_table(table, tmp_path / "dst", image="path", format="png", workers=0)
    assert {key: set(sample) for key, sample in samples_of(tmp_path / "dst").items()} == {
        key: {"__key__", "png"} for key in "abc"
    }


def test_the_longer_side_is_limited_and_smaller_images_keep_their_bytes(tmp_path: Path) -> None:
    sizes = {"wide": (60, 30), "high": (25, 50), "small": (20, 3)}
    files = {f"{name}.png": image_bytes(size=size) for name, size in sizes.items()}
    rows = [{"path": name} for name in files]
    table = as_csv(write_files(tmp_path / "src", files) / "table.csv", rows)
    ss.pack_table(table, tmp_path / "dst", image="path", max_side=20, workers=0)
    found = {key: parts["png"] for key, parts in read_by_streamshard(str(tmp_path / "dst"))}
    opened = {key: Image.open(io.BytesIO(data)).size for key, data in found.items()}
    assert opened == {"wide": (20, 10), "high": (10, 20), "small": (20, 3)}
    assert found["small"] == files["small.png"]


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, kind: str) -> None:
    table = WRITERS[kind](photos(tmp_path / "src") / f"table.{kind}")
    wrong: list[dict[str, Any]] = [{"image": "file"}, {"image": "path", "label": "file"}]
    for columns in wrong:
        with pytest.raises(UsageError, match=r"table.* no column 'file'; it has path, kind, note"):
            ss.pack_table(table, tmp_path / "dst", **columns)
    with pytest.raises(UsageError, match="image and label are one column"):
        ss.pack_table(table, tmp_path / "dst", image="path", label="path")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    ("kind", "line"), [("csv", 4), ("jsonl", 3), ("parquet", 3)], ids=lambda value: str(value)
)
def test_a_missing_or_damaged_image_is_named_by_file_and_line(
    tmp_path: Path, kind: str, line: int
) -> None:
    rows = [{"path": f"{n}.png"} for n in range(4)]
    if kind == "csv":  # a cell before takes two lines
        rows = [{**row, "note": "one\ntwo" if not n else ""} for n, row in enumerate(rows)]
        line = 5
    table = WRITERS[kind](photos(tmp_path / "src", rows) / f"table.{kind}", rows)
    (tmp_path / "src" / "2.png").unlink()
    where = rf"table\.{kind}:{line}: \S*2\.png: No such file"
    with pytest.raises(SampleError, match=where):
        ss.pack_table(table, tmp_path / "dst", image="path")
    (tmp_path / "src" / "2.png").write_bytes(image_bytes()[:60])
    with pytest.raises(SampleError, match=rf"table\.{kind}:{line}: .*not a"):
        ss.pack_table(table, tmp_path / "dst", image="path")
    summary = ss.pack_table(table, tmp_path / "dst", image="path", on_error="skip", resize=4)
    assert (summary.samples, len(summary.skipped)) == (3, 1)
    assert f"table.{kind}:{line}: " in summary.skipped[0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"path": "1.png"}', "column 'label': no label there"),
        ('{"path": "1.png", "label": null}', "column 'label': no label there"),
        ('{"path": "1.png", "label": 0.5}', "label 0.5 is neither text nor an integer"),
        ('{"path": "1.png", "label": true}', "label True is neither text nor an integer"),
        ('{"path": "1.png", "label": 9999999999999999999}', "does not fit 64 bits"),
        ('{"label": 3}', "column 'path': no path there"),
        ('{"path": 7, "label": 3}', "column 'path': 7 is not a path"),
        ('{"path": "1.txt", "label": 3}', r"1\.txt has no suffix of an image"),
        ('["1.png", 3]', "a list; one JSON object a line"),
        ("{", "not JSON"),
        ('{"path": "0.png", "label": 3}', "key '0' is there twice"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_line_and_can_be_skipped(
    tmp_path: Path, row: str, reason: str
) -> None:
    write_files(tmp_path, {"0.png": image_bytes(), "1.png": image_bytes()})
    (tmp_path / "t.jsonl").write_text('{"path": "0.png", "label": 3}\n\n' + row + "\n")
    options: dict[str, Any] = {"image": "path", "label": "label", "shuffle": False}
    with pytest.raises(SampleError, match=rf"t\.jsonl:3: .*{reason}"):
        ss.pack_table(tmp_path / "t.jsonl", tmp_path / "dst", **options)
    summary = ss.pack_table(tmp_path / "t.jsonl", tmp_path / "dst", on_error="skip", **options)
    assert (summary.samples, len(summary.skipped)) == (1, 1)


def test_rows_of_csv_with_another_number_of_cells_are_named_by_line(tmp_path: Path) -> None:
    write_files(tmp_path, {"0.png": image_bytes(), "1.png": image_bytes()})
    (tmp_path / "t.csv").write_bytes(b"path,label\n0.png,x\n1.png\n\xff.png,x\n1.png,\n")
    summary = ss.pack_table(
        tmp_path / "t.csv", tmp_path / "dst", image="path", label="label", on_error="skip",
        shuffle=False,
    )  # fmt: skip
    reasons = ["t.csv:3: 1 columns; the first row names 2", "t.csv:4: ", "t.csv:5: column 'label'"]
    assert len(summary.skipped) == 3
    for skipped, reason in zip(summary.skipped, reasons, strict=True):
        assert reason in skipped


def test_labels_that_are_text_here_and_integers_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"p": "0.png", "l": 3}\n{"p": "1.png", "l": "x"}\n')
    with pytest.raises(PackError, match=r"t\.jsonl: label 'x' in line 2 is text, 3 in line 1 an"):
        ss.pack_table(tmp_path / "t.jsonl", tmp_path / "dst", image="p", label="l")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("t.csv", b"", "no row in it"),
        ("t.csv", b"path,label\n", "no row in it"),
        ("t.jsonl", b"\n\n", "no row in it"),
        ("t.csv", b'path,label\n"0.png,x\n', r"t\.csv:2: unexpected end of data"),
        ("t.parquet", b"no parquet at all", r"t\.parquet: "),
        ("t.xlsx", b"", "no table"),
    ],
)
def test_what_is_no_table_or_an_empty_one_is_refused(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises((PackError, UsageError), match=reason):
        ss.pack_table(tmp_path / name, tmp_path / "dst", image="path")
    assert not (tmp_path / "dst").exists()


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(StoreError, match=rf"{name}: not found"):
            ss.pack_table(tmp_path / name, tmp_path / "dst", image="path")


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(PackError, match=r"pip install 'streamshard\[parquet\]'"):
        ss.pack_table(tmp_path / "t.parquet", tmp_path / "dst", image="path")


def test_a_parquet_table_with_bytes_in_it_is_refused(tmp_path: Path) -> None:
    table = as_parquet(tmp_path / "t.parquet", [{"path": "a.png", "data": b"bytes"}])
    with pytest.raises(PackError, match=r"t\.parquet: a column holds bytes"):
        ss.pack_table(table, tmp_path / "dst", image="path")


def test_a_parquet_table_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_arrays([pyarrow.array(["a.png"])] * 2, ["path", "path"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=r"t\.parquet: the column 'path' is there twice"):
        ss.pack_table(tmp_path / "t.parquet", tmp_path / "dst", image="path")


def test_rows_left_out_by_patterns_are_as_though_they_were_not_there(tmp_path: Path) -> None:
    table = as_csv(photos(tmp_path / "src") / "table.csv")
    summary = ss.pack_table(
        table, tmp_path / "dst", image="path", label="kind", include=["a/*"], keys="number"
    )
    assert summary.notes == ["2 inputs were left out by --include and --exclude"]
    assert set(samples_of(tmp_path / "dst")) == {"000000", "000001"}
    assert ss.open(str(tmp_path / "dst")).classes == ["ant", "cat"]
    with pytest.raises(PackError, match="none of 4 rows is left by --include"):
        ss.pack_table(table, tmp_path / "none", image="path", exclude=["*"])
