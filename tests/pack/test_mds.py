"""MosaicML's datasets: what its own reader makes of them, and what is refused or left out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

import streamshard as ss
from streamshard.codec.tensor import decode_tensors
from streamshard.errors import PackError, SampleError, UsageError
from streamshard.pack.mds_shards import Samples
from tests.pack.mds_files import change_index, write_mds
from tests.pack.sources import files_of, image_bytes, read_by_streamshard, tars_of
from tests.pack.test_pack_resume import stopped

HERE = Path(__file__).parent
FIXTURES = HERE / "mds"
PEERS = Path(os.environ.get("STREAMSHARD_PEERS", HERE.parents[1] / ".peers"))
COMPRESSIONS = ("gz", "bz2", "zstd", "snappy", "br")

COLUMNS = {"image": ("png", 0), "label": ("int", 8), "note": ("str", 0)}
Told = list[dict[str, Any]]


def row(number: int, label: bytes | None = None) -> list[bytes]:
    label = struct.pack("<q", number % 3) if label is None else label
    return [image_bytes(seed=number), label, f"note {number}".encode()]


def parts(number: int) -> dict[str, bytes]:
    note = json.dumps({"note": f"note {number}"}, separators=(",", ":")).encode()
    return {"png": image_bytes(seed=number), "cls": b"%d" % (number % 3), "json": note}


def shards_of(*lengths: int) -> list[list[list[bytes]]]:
    """Rows that count on from shard to shard."""
    ends = np.cumsum(lengths).tolist()
    return [[row(n) for n in range(end - k, end)] for k, end in zip(lengths, ends, strict=True)]


@pytest.fixture
def six(tmp_path: Path) -> Path:
    """Six shards with ten samples each."""
    return write_mds(tmp_path / "six", COLUMNS, shards_of(*[10] * 6))


def packed(source: Path, folder: Path, **options: Any) -> list[tuple[str, dict[str, bytes]]]:
    ss.pack_mds(source, folder, shuffle=False, **options)
    return read_by_streamshard(str(folder))


# What mosaicml-streaming reads


def told(sample: dict[str, bytes]) -> dict[str, Any]:
    """A packed sample as readers/of_mosaicml.py tells of one."""
    found: dict[str, Any] = {}
    for part, data in sample.items():
        column, _, suffix = part.partition(".")
        if part == "cls":
            found["label"] = int(data)
        elif part == "json":
            found |= {name: told_value(value) for name, value in json.loads(data).items()}
        elif suffix == "npy":
            array = np.load(io.BytesIO(data))
            found[column] = [array.dtype.name, [*array.shape], digest(array.tobytes())]
        elif suffix == "images.safetensors":
            images = decode_tensors(data)
            found[column] = [image(column, images[n].numpy().tobytes()) for n in sorted(images)]
        elif suffix == "bin":
            found[column] = digest(data)
        else:
            found["image" if part == "jpg" else column] = image(column, data)
    return found


def told_value(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else value


def image(column: str, data: bytes) -> list[Any]:
    if column not in ("mask", "pils"):
        return ["file", digest(data)]
    opened = Image.open(io.BytesIO(data))
    return ["pixels", opened.mode, [*opened.size], digest(opened.tobytes())]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_parity(folder: Path, expected: Told, scratch: Path) -> None:
    found = packed(folder, scratch / folder.name)
    assert [key for key, _ in found] == [f"{number:06d}" for number in range(len(expected))]
    for (_, sample), wanted in zip(found, expected, strict=True):
        assert told(sample) == wanted


@pytest.mark.parametrize("name", ["encodings", *COMPRESSIONS])
def test_each_encoding_and_compression_is_what_its_own_reader_makes_of_it(
    name: str, tmp_path: Path
) -> None:
    expected = json.loads((FIXTURES / "expected.json").read_text())
    assert_parity(FIXTURES / name, expected[name], tmp_path)


@pytest.mark.slow
def test_what_its_writer_writes_now_is_what_its_reader_makes_of_it(tmp_path: Path) -> None:
    python = PEERS / "mds" / "bin" / "python"
    if not python.exists():
        pytest.skip("tools/peers mds installs it")
    levels = [f"{kind}:{level}" for kind in ("gz", "bz2", "zstd", "br") for level in (1, 9)]
    done = subprocess.run(
        [
            python,
            HERE / "readers" / "of_mosaicml.py",
            tmp_path / "src",
            "60",
            *COMPRESSIONS,
            *levels,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1])},
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    for name, expected in json.loads(done.stdout.splitlines()[-1]).items():
        assert len(expected) == 60
        assert_parity(tmp_path / "src" / name, expected, tmp_path)


# Laws of every pack


def test_images_labels_and_the_rest_become_parts(six: Path, tmp_path: Path) -> None:
    expected = [(f"{n:06d}", parts(n)) for n in range(60)]
    assert packed(six, tmp_path / "dst") == expected
    assert ss.pack_mds(six, tmp_path / "again").notes == []
    assert dict(read_by_streamshard(str(tmp_path / "again"))) == dict(expected)


def test_the_shuffle_mixes_shards_by_the_seed(six: Path, tmp_path: Path) -> None:
    found = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        ss.pack_mds(six, tmp_path / name, seed=seed)
        found[name] = [int(key) for key, _ in read_by_streamshard(str(tmp_path / name))]
        assert sorted(found[name]) == list(range(60))
    assert found["one"] == found["again"] != found["other"]
    assert len({number // 10 for number in found["one"][:10]}) > 2


def test_shards_may_be_empty(tmp_path: Path) -> None:
    lengths = (0, 3, 0, 0, 0, 0, 2, 0)
    source = write_mds(tmp_path / "src", {**COLUMNS, "image": ("bytes", 0)}, shards_of(*lengths))
    assert packed(source, tmp_path / "dst") == [(f"{n:06d}", parts(n)) for n in range(5)]
    ss.pack_mds(source, tmp_path / "mixed")
    assert len(ss.open(str(tmp_path / "mixed"))) == 5


def test_the_bytes_do_not_depend_on_who_encodes_nor_where_it_lies(
    tmp_path: Path, scratch: Path
) -> None:
    found = []
    plain = write_mds(tmp_path / "plain", COLUMNS, shards_of(*[10] * 5))
    write_mds(tmp_path / "gz", COLUMNS, shards_of(*[10] * 5), compression="gz", hashes=("md5",))
    options: dict[str, Any] = {"resize": 5, "format": "jpg", "shard_size": 20_000}
    for workers in (0, 2):
        ss.pack_mds(plain, tmp_path / f"{workers}", workers=workers, **options)
        found.append(files_of(tmp_path / f"{workers}"))
    memory = fsspec.filesystem("memory")
    try:
        for name in ("plain", "gz"):
            memory.put(str(tmp_path / name), f"/mds/{name}", recursive=True)
            url = f"memory://mds/{name}"
            ss.pack_mds(url, tmp_path / f"far-{name}", workers=0, **options)
            found.append(files_of(tmp_path / f"far-{name}"))
    finally:
        memory.rm("/mds", recursive=True)
    assert all(files == found[0] for files in found)
    assert os.listdir(scratch) == []


def test_a_pack_that_ended_goes_on_to_the_same_bytes(six: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_size": 30_000}

    def pack(dst: Path, **given: Any) -> None:
        ss.pack_mds(six, dst, **options, **given)

    pack(tmp_path / "whole")
    assert len(tars_of(tmp_path / "whole")) > 3
    stopped(pack, tmp_path / "dst", 45)
    changed = six / "shard.00005.mds"
    data = changed.read_bytes()
    changed.write_bytes(data[:-1])
    with pytest.raises(PackError, match=r"shard\.00005\.mds has changed"):
        pack(tmp_path / "dst", resume=True)
    changed.write_bytes(data)
    shutil.rmtree(tmp_path / "dst")
    stopped(pack, tmp_path / "dst", 45)
    pack(tmp_path / "dst", resume=True)
    assert files_of(tmp_path / "dst") == files_of(tmp_path / "whole")


def test_splits_and_patterns_open_no_more_shards_than_they_need(
    six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    opened = []

    def counted(*given: Any) -> Samples:
        opened.append(given)
        return Samples(*given)

    monkeypatch.setattr("streamshard.pack.mds.Samples", counted)
    ss.pack_mds(six, tmp_path / "split", split={"train": 0.8, "val": 0.2})
    assert len(opened) == 12
    whole = {**dict(read_by_streamshard(str(tmp_path / "split" / "train")))}
    whole |= dict(read_by_streamshard(str(tmp_path / "split" / "val")))
    assert whole == {f"{n:06d}": parts(n) for n in range(60)}
    summary = ss.pack_mds(six, tmp_path / "some", include=["00000?"], exclude=["*3"])
    assert summary.samples == 9


# Columns


def test_labels_that_are_text_become_classes(tmp_path: Path) -> None:
    columns = {**COLUMNS, "label": ("str", 0)}
    rows = [row(n, label=("ant", "bee", "cat")[n % 3].encode()) for n in range(9, 0, -1)]
    source = write_mds(tmp_path / "src", columns, [rows[:4], rows[4:]])
    found = packed(source, tmp_path / "dst")
    assert ss.open(str(tmp_path / "dst")).classes == ["ant", "bee", "cat"]
    assert [int(sample["cls"]) for _, sample in found] == [n % 3 for n in range(9, 0, -1)]


def test_pickled_columns_are_refused_until_they_are_dropped(tmp_path: Path) -> None:
    columns = {**COLUMNS, "note": ("pkl", 0)}
    source = write_mds(tmp_path / "src", columns, shards_of(3))
    with pytest.raises(UsageError, match=r"column 'note': .*pickled.*; --drop note"):
        ss.pack_mds(source, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    assert [set(sample) for _, sample in packed(source, tmp_path / "dst", drop=["note"])] == [
        {"png", "cls"}
    ] * 3
    change_index(source, 0, column_encodings=["png", "int", "ndarray:object"])
    with pytest.raises(UsageError, match=r"'ndarray:object' is not known here; --drop note"):
        ss.pack_mds(source, tmp_path / "dst", overwrite=True)


def test_bytes_are_an_image_only_where_that_is_said(tmp_path: Path) -> None:
    columns = {"photo": ("bytes", 0), "label": ("int", 8), "note": ("str", 0)}
    source = write_mds(tmp_path / "src", columns, shards_of(3))
    summary = ss.pack_mds(source, tmp_path / "dst")
    assert summary.notes == ["no image: photo became bytes; --image photo makes one of it"]
    assert {*ss.open(str(tmp_path / "dst")).manifest.parts} == {"photo.bin", "cls", "json"}
    assert packed(source, tmp_path / "png", image="photo")[2] == ("000002", parts(2))


def test_other_formats_are_named_with_their_remedy(tmp_path: Path) -> None:
    rows = [row(0), row(1)]
    rows[1][0] = image_bytes("JPEG", seed=1)
    source = write_mds(tmp_path / "src", COLUMNS, [rows])
    wanted = r"shard\.00000\.mds, sample 1: column 'image': a jpg where others are png; --format"
    with pytest.raises(SampleError, match=wanted):
        ss.pack_mds(source, tmp_path / "dst", shuffle=False)
    assert [*packed(source, tmp_path / "dst", format="webp", workers=0)[1][1]] == [
        "webp",
        "cls",
        "json",
    ]


# What is not as the index says


def test_damaged_shards_are_named_and_may_be_skipped(six: Path, tmp_path: Path) -> None:
    path = six / "shard.00002.mds"
    data = path.read_bytes()
    flipped = data[:700] + bytes([data[700] ^ 1]) + data[701:]
    for wrong, reason in (
        (flipped, r"its sha1 is not the one in index\.json"),
        (data[:-1], rf"{len(data) - 1} bytes; index\.json says {len(data)}"),
        (None, "not found"),
    ):
        path.unlink(missing_ok=True)
        if wrong is not None:
            path.write_bytes(wrong)
        with pytest.raises(SampleError, match=rf"shard\.00002\.mds, sample 0: .*{reason}"):
            ss.pack_mds(six, tmp_path / "dst", shuffle=False)
        summary = ss.pack_mds(six, tmp_path / "dst", on_error="skip")
        assert (summary.samples, len(summary.skipped)) == (50, 10)
        shutil.rmtree(tmp_path / "dst")


def test_without_hashes_what_is_damaged_is_found_sample_by_sample(tmp_path: Path) -> None:
    source = write_mds(tmp_path / "src", COLUMNS, shards_of(5), hashes=("xxh64",))
    path = source / "shard.00000.mds"
    data = bytearray(path.read_bytes())
    begin, after = struct.unpack_from("<2I", data, 4 * 3)  # of sample 2, and of the one behind it
    data[begin : begin + 4] = struct.pack("<I", after - begin)  # its image would be all there is
    data[4 * 6 : 4 * 6 + 4] = struct.pack("<I", 1 << 31)  # where sample 4 ends and 5 would begin
    path.write_bytes(data)
    with pytest.raises(SampleError, match=r"sample 0: damaged: .* lie at \d+ to 2147483648"):
        ss.pack_mds(source, tmp_path / "dst", shuffle=False)
    data[4 * 6 : 4 * 6 + 4] = struct.pack("<I", len(data))
    data[4 * 2 : 4 * 2 + 4] = struct.pack("<I", len(data) + 1)  # where sample 0 ends
    path.write_bytes(data)
    summary = ss.pack_mds(source, tmp_path / "dst", shuffle=False, on_error="skip")
    assert summary.samples == 2
    reasons = [reason.partition("mds, ")[2] for reason in summary.skipped]
    assert [reason.partition(": ")[0] for reason in reasons] == ["sample 0", "sample 1", "sample 2"]
    assert "it lies at" in reasons[0]
    assert "columns have" in reasons[2]
    assert summary.notes == ["hashes that hashlib does not know were not compared: xxh64"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_shards_are_compared_with_the_index_too(
    compression: str, tmp_path: Path, scratch: Path
) -> None:
    source = tmp_path / "src"
    shutil.copytree(FIXTURES / compression, source)
    path = source / f"shard.00000.mds.{compression}"
    whole = path.read_bytes()
    index = json.loads((source / "index.json").read_text())
    nbytes = index["shards"][0]["raw_data"]["bytes"]
    for wrong in (nbytes - 1, nbytes + 1):
        raw = {"basename": "shard.00000.mds", "bytes": wrong, "hashes": {}}
        change_index(source, 0, raw_data=raw)
        with pytest.raises(SampleError, match=r"shard\.00000\.mds\.\w+, sample 0: damaged: unp"):
            ss.pack_mds(source, tmp_path / "dst", shuffle=False)
    path.write_bytes(whole[:-5])
    entry = {"basename": path.name, "bytes": len(whole) - 5, "hashes": {}}
    change_index(source, 0, zip_data=entry, raw_data=index["shards"][0]["raw_data"])
    with pytest.raises(SampleError, match=rf"shard\.00000\.mds\.{compression}, sample 0: "):
        ss.pack_mds(source, tmp_path / "dst", shuffle=False)
    assert os.listdir(scratch) == []


def test_unpacked_files_beside_the_index_are_taken(tmp_path: Path) -> None:
    """As its reader leaves them where it keeps what it fetched."""
    source = write_mds(tmp_path / "src", COLUMNS, shards_of(4), compression="gz")
    plain = write_mds(tmp_path / "plain", COLUMNS, shards_of(4))
    (source / "shard.00000.mds.gz").unlink()
    (plain / "shard.00000.mds").rename(source / "shard.00000.mds")
    assert packed(source, tmp_path / "dst") == [(f"{n:06d}", parts(n)) for n in range(4)]


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PackError, match=r"zstd takes pyarrow.*pip install 'streamshard\[mds\]'"):
        ss.pack_mds(FIXTURES / "zstd", tmp_path / "dst")


def test_folders_that_are_no_dataset_are_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_mds(tmp_path / "src" / split, COLUMNS, shards_of(2))
    for folder, reason in (
        (tmp_path / "src", r"in train, val below it; .* such as .*src/train"),
        (tmp_path, r"no index\.json there, which a MosaicML dataset has"),
    ):
        with pytest.raises(PackError, match=reason):
            ss.pack_mds(folder, tmp_path / "dst")


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"format": "csv"}, "shard 1: format csv version 2; mds version 2 is read"),
        ({"column_names": ["image", "label", "x"]}, "shard 1 has other columns than shard 0"),
        (
            {"raw_data": {"basename": "../x.mds", "bytes": 1, "hashes": {}}},
            "shard 1: its file '../x.mds' lies outside the folder",
        ),
        ({"samples": "many"}, "no index of MDS .ValueError"),
        ({"column_sizes": []}, "no index of MDS .ValueError"),
    ],
)
def test_an_index_that_can_not_be_read_is_refused(
    entries: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    source = write_mds(tmp_path / "src", COLUMNS, shards_of(2, 2))
    change_index(source, 1, **entries)
    with pytest.raises(PackError, match=reason):
        ss.pack_mds(source, tmp_path / "dst")
    (source / "index.json").write_text('{"version": 1, "shards": []}')
    with pytest.raises(PackError, match="version 1; version 2 is read"):
        ss.pack_mds(source, tmp_path / "dst")
