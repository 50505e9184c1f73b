"""Parquet files that hold images: what `datasets` makes of them, and what is left out."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamshard as ss
from streamshard.errors import PackError, SampleError, UsageError
from streamshard.pack.parquet_files import ParquetFiles
from tests.pack.sources import files_of, image_bytes, read_by_streamshard, tars_of
from tests.pack.test_pack_resume import stopped

HERE = Path(__file__).parent
FIXTURES = HERE / "parquet"

Parts = dict[str, bytes]


def photos(begin: int, end: int, **more: Any) -> pa.Table:
    """Rows of bytes and a label; `more` has further columns."""
    numbers = range(begin, end)
    images = [image_bytes(seed=number) for number in numbers]
    return pa.table({"image": images, "label": [number % 3 for number in numbers], **more})


def parts(number: int) -> Parts:
    return {"png": image_bytes(seed=number), "cls": b"%d" % (number % 3)}


def write(path: Path, table: pa.Table, rows: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Three files of twenty rows, five in a row group."""
    for n in range(3):
        write(tmp_path / "old" / f"p-{n}.parquet", photos(20 * n, 20 * n + 20))
    return tmp_path / "old"


def packed(files: Any, folder: Path, **options: Any) -> list[tuple[str, Parts]]:
    ss.pack_parquet(files, folder, shuffle=False, **options)
    return read_by_streamshard(str(folder))


# What `datasets` reads


def told(sample: Parts) -> dict[str, Any]:
    """A packed sample as readers/of_parquet.py tells of one."""
    found: dict[str, Any] = {"image": digest(sample["jpg"]), "label": int(sample["cls"])}
    found |= {"depth": digest(sample["depth.png"]), "raw": digest(sample["raw.bin"])}
    for column, dtype in (("embedding", "float32"), ("tokens", "int32")):
        array = np.load(io.BytesIO(sample[f"{column}.npy"]))
        assert (array.dtype, array.ndim) == (dtype, 1)
        found[column] = array.tolist()
    return {**found, **json.loads(sample["json"])}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_parity(folder: Path, expected: list[dict[str, Any]], scratch: Path) -> None:
    found = packed(folder, scratch / "dst")
    assert [key for key, _ in found] == [f"{number:06d}" for number in range(len(expected))]
    assert [told(sample) for _, sample in found] == expected
    assert ss.open(str(scratch / "dst")).classes == ["ant", "bee", "cat"]


def test_every_row_is_what_datasets_makes_of_it(tmp_path: Path) -> None:
    assert_parity(FIXTURES, json.loads((FIXTURES / "expected.json").read_text()), tmp_path)


@pytest.mark.slow
def test_what_datasets_writes_now_is_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    done = subprocess.run(
        [sys.executable, HERE / "readers" / "of_parquet.py", tmp_path / "src", "200"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    expected = json.loads(done.stdout.splitlines()[-1])
    assert len(expected) == 200
    assert_parity(tmp_path / "src", expected, tmp_path)


# Laws of every pack


def test_rows_become_samples_by_their_number(old: Path, tmp_path: Path) -> None:
    assert packed(old, tmp_path / "dst") == [(f"{n:06d}", parts(n)) for n in range(60)]
    assert packed(old / "p-[12].parquet", tmp_path / "two")[0][1] == parts(20)
    assert len(packed(f"{old}/p-{{0,2}}.parquet", tmp_path / "braces")) == 40
    assert len(packed(old / "p-1.parquet", tmp_path / "one")) == 20


def test_the_shuffle_mixes_row_groups_by_the_seed(old: Path, tmp_path: Path) -> None:
    found = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        ss.pack_parquet(old, tmp_path / name, seed=seed)
        samples = read_by_streamshard(str(tmp_path / name))
        assert dict(samples) == {f"{n:06d}": parts(n) for n in range(60)}
        found[name] = [int(key) for key, _ in samples]
    assert found["one"] == found["again"] != found["other"]
    assert len({number // 5 for number in found["one"][:10]}) > 2


def test_the_bytes_do_not_depend_on_who_encodes_nor_where_the_files_lie(
    old: Path, tmp_path: Path, scratch: Path
) -> None:
    options: dict[str, Any] = {"resize": 5, "format": "jpg", "shard_size": 20_000}
    memory = fsspec.filesystem("memory")
    try:
        memory.put(str(old), "/parquet", recursive=True)
        ss.pack_parquet("memory://parquet", tmp_path / "far", workers=0, **options)
    finally:
        memory.rm("/parquet", recursive=True)
    for workers in (0, 2):
        ss.pack_parquet(old, tmp_path / f"{workers}", workers=workers, **options)
        assert files_of(tmp_path / f"{workers}") == files_of(tmp_path / "far")
    assert os.listdir(scratch) == []


def test_a_pack_that_ended_goes_on_to_the_same_bytes(old: Path, tmp_path: Path) -> None:
    def pack(dst: Path, **given: Any) -> None:
        ss.pack_parquet(old, dst, shard_size=30_000, **given)

    pack(tmp_path / "whole")
    assert len(tars_of(tmp_path / "whole")) > 2
    stopped(pack, tmp_path / "dst", 45)
    pack(tmp_path / "dst", resume=True)
    assert files_of(tmp_path / "dst") == files_of(tmp_path / "whole")
    stopped(pack, tmp_path / "again", 45)
    os.utime(old / "p-1.parquet", ns=(0, 0))
    with pytest.raises(PackError, match=r"p-1\.parquet has changed"):
        pack(tmp_path / "again", resume=True)


def test_only_row_groups_that_are_wanted_are_decoded(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    copied = ParquetFiles.copied

    def counted(self: ParquetFiles, number: int, *given: Any) -> Any:
        decoded.append(number)
        return copied(self, number, *given)

    monkeypatch.setattr(ParquetFiles, "copied", counted)

    def pack(dst: Path, **given: Any) -> None:
        ss.pack_parquet(old, dst, shard_size=30_000, shuffle=False, **given)

    pack(tmp_path / "whole")
    assert decoded == list(range(12))
    stopped(pack, tmp_path / "dst", 55)
    decoded.clear()
    pack(tmp_path / "dst", resume=True)
    assert decoded
    assert min(decoded) >= 4
    assert files_of(tmp_path / "dst") == files_of(tmp_path / "whole")
    decoded.clear()
    ss.pack_parquet(old, tmp_path / "split", split={"train": 0.8, "val": 0.2})
    assert sorted(decoded) == sorted([*range(12)] * 2), "once for each split, none for the keys"
    both = [read_by_streamshard(str(tmp_path / "split" / name)) for name in ("train", "val")]
    assert {**dict(both[0]), **dict(both[1])} == {f"{n:06d}": parts(n) for n in range(60)}


def test_a_row_group_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """In batches of at most a few megabytes, however many rows it has."""
    noise = np.random.default_rng(0)
    table = pa.table({"image": [noise.bytes(1_000_000) for _ in range(24)]})
    files = ParquetFiles([str(write(tmp_path / "p.parquet", table, rows=24))], None)
    assert len(files.groups) == 1
    sizes = [batch.nbytes for batch in files.batches(files.groups[0], ["image"])]
    assert sum(sizes) > 24_000_000
    assert max(sizes) < 12_000_000


# Columns


def test_what_json_has_no_word_for_is_text(tmp_path: Path) -> None:
    more = {
        "when": [datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)],
        "time": [datetime.time(3, 4)],
        "took": [datetime.timedelta(minutes=3)],
        "price": [decimal.Decimal("1.50")],
        "nested": [{"a": [datetime.date(2020, 1, 2)], "b": None}],
        "kind": pa.array(["tall"]).dictionary_encode(),
        "half": pa.array([np.float16(0.5)], pa.float16()),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "yes": [True],
    }
    write(tmp_path / "p.parquet", photos(0, 1, **more))
    [(_, sample)] = packed(tmp_path / "p.parquet", tmp_path / "dst")
    assert json.loads(sample["json"]) == {
        "when": "2020-01-02T03:04:05+00:00",
        "time": "03:04:00",
        "took": "0:03:00",
        "price": "1.50",
        "nested": {"a": ["2020-01-02"], "b": None},
        "kind": "tall",
        "half": 0.5,
        "map": [["k", 1]],
        "yes": True,
    }


@pytest.mark.parametrize("coded", [False, True])
def test_labels_that_are_text_become_classes(tmp_path: Path, coded: bool) -> None:
    names = pa.array(["cat", "ant", "bee", "cat"] * 3)
    table = photos(0, 12).set_column(1, "label", names.dictionary_encode() if coded else names)
    write(tmp_path / "p.parquet", table)
    found = packed(tmp_path / "p.parquet", tmp_path / "dst")
    assert [sample["cls"] for _, sample in found] == [b"2", b"0", b"1", b"2"] * 3
    assert ss.open(str(tmp_path / "dst")).classes == ["ant", "bee", "cat"]


def test_the_path_beside_the_bytes_may_be_the_key(tmp_path: Path) -> None:
    paths = ["a/x.v1.png", "/b/y.png", "ü.png"]
    images: list[dict[str, Any]] = [
        {"bytes": image_bytes(seed=n), "path": path} for n, path in enumerate(paths)
    ]
    write(tmp_path / "p.parquet", pa.table({"photo": images}))
    options: dict[str, Any] = {"image": "photo", "keys": "path"}
    found = packed(tmp_path / "p.parquet", tmp_path / "dst", **options)
    assert [key for key, _ in found] == ["a/x%2Ev1", "b/y", "%C3%BC"]
    found = packed(tmp_path / "p.parquet", tmp_path / "some", include=["a/*"], **options)
    assert [key for key, _ in found] == ["a/x%2Ev1"]
    images[1]["path"] = None
    write(tmp_path / "p.parquet", pa.table({"photo": images}))
    with pytest.raises(SampleError, match=r"row 1: no path beside the bytes; --keys number"):
        packed(tmp_path / "p.parquet", tmp_path / "bad", **options)


def test_columns_are_chosen_by_name_where_they_must_be(tmp_path: Path) -> None:
    more = {"thumb": [image_bytes()], "deep": [[b"x"]], "y": [1]}
    path = write(tmp_path / "p.parquet", photos(0, 1, **more))
    for options, reason in (
        ({}, r"column 'deep': list<element: binary> has bytes inside.*--drop deep"),
        ({"drop": ["deep"]}, r"which column is the label\? --label says it: label .int64., y"),
        ({"drop": ["deep"], "image": "label"}, "'label' is int64; .*pack table takes paths"),
        ({"drop": ["deep"], "label": "thumb"}, "'thumb' is binary; a label is int or text"),
        ({"drop": ["nothing"]}, r"no column 'nothing'; it has image .binary., label .int64."),
        ({"drop": ["deep"], "label": "deep"}, "column 'deep' is wanted and dropped"),
        ({"drop": ["deep", "image"], "label": "y"}, r"which column holds the images\? --image"),
    ):
        with pytest.raises(UsageError, match=reason):
            ss.pack_parquet(path, tmp_path / "dst", **options)
    assert not (tmp_path / "dst").exists()
    [(_, sample)] = packed(path, tmp_path / "dst", drop=["deep"], image="thumb", label="y")
    assert set(sample) == {"png", "cls", "image.bin", "json"}


def test_paths_and_bytes_each_have_their_door(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", photos(0, 2))
    with pytest.raises(PackError, match="streamshard pack parquet takes images that lie in"):
        ss.pack_table(path, tmp_path / "dst", image="image")
    write(path, pa.table({"image": ["a.png"], "label": [1]}))
    with pytest.raises(UsageError, match=r"streamshard pack table takes paths of images"):
        ss.pack_parquet(path, tmp_path / "dst", image="image")
    images = pa.array([{"bytes": None, "path": "a.png"}], PHOTO)
    write(path, pa.table({"image": pa.concat_arrays([first(), images])}))
    with pytest.raises(SampleError, match=r"row 1: column 'image': .*the path a\.png; .*table"):
        packed(path, tmp_path / "dst")


PHOTO = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def first() -> pa.Array:
    return pa.array([{"bytes": image_bytes(), "path": None}], PHOTO)


def test_rows_that_can_not_be_packed_are_named_and_skipped(tmp_path: Path) -> None:
    images = [image_bytes(seed=n) for n in range(8)]
    images[1], images[3], images[4] = image_bytes("JPEG"), images[3][:60], b"no image"
    lists: list[Any] = [[1], [1], [1, None], *[[1]] * 5]
    labels = [*range(6), None, 7]
    table: dict[str, Any] = {"image": [*images[:5], None, *images[6:]], "label": labels, "x": lists}
    path = write(tmp_path / "p.parquet", pa.table(table), rows=8)
    summary = ss.pack_parquet(path, tmp_path / "dst", shuffle=False, on_error="skip")
    assert summary.samples == 2
    for row, (reason, skipped) in enumerate(
        zip(
            (
                "column 'image': a jpg where others are png; --format",
                "column 'x': a list of numbers with gaps; --drop x",
                "part png: not a",
                "column 'image': not an image",
                "column 'image': nothing there",
                "column 'label': no label there",
            ),
            summary.skipped,
            strict=True,
        ),
        1,
    ):
        assert skipped.startswith(f"{path}, row {row}: ")
        assert reason in skipped


# What is no Parquet, or damaged


def test_damaged_row_groups_are_named_and_may_be_skipped(old: Path, tmp_path: Path) -> None:
    path = old / "p-1.parquet"
    chunk = pq.read_metadata(path).row_group(1).column(0)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    with path.open("r+b") as file:
        file.seek(begin + 100)
        file.write(bytes(200))
    summary = ss.pack_parquet(old, tmp_path / "dst", on_error="skip")
    rows = sorted(reason.partition(": ")[0].rpartition("row ")[2] for reason in summary.skipped)
    assert rows
    assert set(rows) <= {"5", "6", "7", "8", "9"}
    assert summary.samples == 60 - len(rows)
    with pytest.raises(SampleError, match=rf"p-1\.parquet, row {rows[0]}: "):
        packed(old, tmp_path / "stopped")


def test_checksums_of_pages_are_compared_where_there_are_any(tmp_path: Path) -> None:
    table = photos(0, 3, raw=[b"first bytes", b"other bytes", b"last bytes"])
    path = tmp_path / "p.parquet"
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    pq.write_table(table, path, row_group_size=1, write_page_checksum=True, **plain)
    path.write_bytes(path.read_bytes().replace(b"other bytes", b"other bites"))
    summary = ss.pack_parquet(path, tmp_path / "dst", on_error="skip")
    assert summary.samples == 2
    assert [reason.partition(": ")[0] for reason in summary.skipped] == [f"{path}, row 1"]


def test_files_that_do_not_fit_are_named(old: Path, tmp_path: Path) -> None:
    write(old / "p-3.parquet", photos(0, 1, more=[1]))
    with pytest.raises(PackError, match=r"p-3\.parquet: columns image, label, more; .*p-0"):
        ss.pack_parquet(old, tmp_path / "dst")
    (old / "p-3.parquet").write_bytes(b"PAR1 text PAR1")
    with pytest.raises(PackError, match=r"p-3\.parquet: "):
        ss.pack_parquet(old, tmp_path / "dst")
    for pattern, reason in (
        (old / "x-*.parquet", "no such parquet"),
        (tmp_path / "dst", "no parquet there"),
        (write(tmp_path / "e.parquet", photos(0, 0)), "no row in it"),
    ):
        with pytest.raises(PackError, match=reason):
            ss.pack_parquet(pattern, tmp_path / "dst")


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(PackError, match=r"pip install 'streamshard\[parquet\]'"):
        ss.pack_parquet(FIXTURES, tmp_path / "dst")


def test_rows_travel_without_what_is_open(old: Path) -> None:
    files = ParquetFiles([str(old / "p-0.parquet")], None)
    rows = files.copied(1, ["label"])
    assert rows.read(2)["label"].as_py() == 7 % 3
    assert pickle.loads(pickle.dumps(rows)).read(3)["label"].as_py() == 8 % 3
