"""`streamshard export`, `cat` and `unpack`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import streamshard as ss
from streamshard.pack.index import index_tars
from streamshard.stream.export import export
from streamshard.stream.unpack import unpack
from tests.cli.command import COMMAND, Here, environment
from tests.pack.sources import class_folders, files_of, write_files, write_tar


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with photos, what was packed of them, and graphs."""
    class_folders(tmp_path / "photos", ["ant", "bee"], each=3)
    ss.pack_images(tmp_path / "photos", tmp_path / "own", shard_size=6_000)
    return write_files(tmp_path, {"graphs.jsonl": b'{"num_nodes": 3, "y": 1}\n' * 3})


def test_export_writes_what_the_function_writes(place: Path, here: Here) -> None:
    ss.pack_images(place / "photos", place / "api", shard_size=6_000)
    done = export(place / "api", "wids,energon")
    shown = here("export", "own", "--to", "energon,wids", "--json", cwd=place)
    assert (shown.status, shown.err) == (0, "")
    assert json.loads(shown.out) == {
        "formats": ["wids", "energon"],
        "files": done.files,
        "bytes": done.bytes,
        "fingerprint": done.fingerprint,
    }
    assert files_of(place / "own") == files_of(place / "api")
    told = here("export", "own", "--to", "dali", cwd=place)
    assert told.out.startswith("own: exported to dali: ")
    export(place / "api", "dali")
    assert files_of(place / "own") == files_of(place / "api")


@pytest.mark.parametrize("what", ["images photos", "graphs graphs.jsonl"])
def test_a_pack_exports_too(place: Path, here: Here, what: str) -> None:
    pack = ("pack", *what.split())
    assert here(*pack, "plain", cwd=place).status == 0
    done = here(*pack, "dst", "--export", "dali,energon,wids", "--json", cwd=place)
    assert (done.status, done.err) == (0, "")
    (note,) = json.loads(done.out)["notes"]
    assert note.startswith("exported to wids, dali, energon: 8 files, ")
    export(place / "plain", "wids,dali,energon")
    assert files_of(place / "dst") == files_of(place / "plain")
    again = here(*pack, "dst", "--overwrite", cwd=place)
    assert again.status == 0
    assert not [name for name in files_of(place / "dst") if name.endswith(".idx")]


@pytest.mark.parametrize("what", ["images photos", "graphs graphs.jsonl"])
def test_an_unknown_reader_is_refused_before_anything_is_packed(
    place: Path, here: Here, what: str
) -> None:
    done = here("pack", *what.split(), "dst", "--export", "dali,hf", cwd=place)
    assert (done.status, done.out) == (2, "")
    assert done.err == "streamshard: export to 'hf'; known are wids, dali, energon\n"
    assert not (place / "dst").exists()


def test_an_exported_dataset_is_whole_and_can_be_indexed_anew(place: Path, here: Here) -> None:
    assert here("export", "own", "--to", "wids,dali,energon", cwd=place).status == 0
    assert here("verify", "own", cwd=place).status == 0
    assert here("index", "own", "--out", "elsewhere", cwd=place).status == 0


def test_cat_gives_the_bytes_of_a_part(place: Path, here: Here) -> None:
    done = here("cat", "own", "bee/2.cls", cwd=place)
    assert (done.status, done.out, done.err) == (0, "1", "")
    image = subprocess.run(
        [*COMMAND, "cat", "own", "bee/2.png"],
        capture_output=True,
        cwd=place,
        env=environment(),
        check=True,
    )
    assert image.stdout == (place / "photos" / "bee" / "2.png").read_bytes()


def test_cat_of_a_key_lists_its_parts_or_gives_the_only_one(place: Path, here: Here) -> None:
    size = (place / "photos" / "ant" / "1.png").stat().st_size
    done = here("cat", "own", "ant/1", cwd=place)
    assert (done.status, done.out) == (0, f"ant/1.png\t{size}\nant/1.cls\t1\n")
    value = json.loads(here("cat", "own", "ant/1", "--json", cwd=place).out)
    assert value.pop("shard").startswith("shard-")
    assert value == {"key": "ant/1", "parts": {"png": size, "cls": 1}}
    value = json.loads(here("cat", "own", "ant/1.cls", "--json", cwd=place).out)
    assert value["parts"] == {"cls": 1}
    with ss.ShardWriter(place / "texts") as writer:
        writer.write({"__key__": "a", "txt": "only this"})
    assert here("cat", "texts", "a", cwd=place).out == "only this"


def test_unpack_writes_what_the_function_writes(place: Path, here: Here) -> None:
    done = here("unpack", "own", "out", "--keys", "ant/*", "--keys", "bee/0", "--json", cwd=place)
    assert (done.status, done.err) == (0, "")
    unpack(place / "own", place / "api", keys=["ant/*", "bee/0"])
    assert files_of(place / "out") == files_of(place / "api")
    total = sum(map(len, files_of(place / "out").values()))
    assert json.loads(done.out) == {"samples": 4, "files": 8, "bytes": total}
    all_of_it = here("unpack", "own", "out", "--overwrite", cwd=place)
    assert all_of_it.out.startswith("out: 6 samples, 12 files, ")


@pytest.mark.parametrize(
    ("command", "status", "named"),
    [
        ("export own", 2, "--to"),
        ("export own --to hf", 2, "'hf'"),
        ("export nowhere --to wids", 1, "nowhere: no such folder"),
        ("export tars --to wids", 1, "`streamshard index tars`"),
        ("export edited --to energon", 2, "split.yaml is there already"),
        ("cat own", 2, "KEY"),
        ("cat own ant/7", 1, "no key 'ant/7'; near it: ant/"),
        ("cat own ant/1.jpg", 1, "key ant/1 has no part 'jpg', only png, cls"),
        ("cat nowhere a", 1, "nowhere: no such folder"),
        ("unpack own", 2, "OUT"),
        ("unpack own photos", 2, "png is there already; --overwrite"),
        ("unpack own graphs.jsonl", 1, "graphs.jsonl"),
        ("unpack own out --keys x*", 1, "'x*'"),
        ("unpack own s3://bucket/out", 2, "s3://bucket/out: samples are unpacked to a local"),
        ("unpack climbing out", 1, "climbing/x.tar: key ../up: '../up.txt' leads out"),
        ("unpack tars out", 1, "`streamshard index tars`"),
    ],
)
def test_bad_input_is_one_line_that_names_the_thing(
    place: Path, here: Here, command: str, status: int, named: str
) -> None:
    write_tar(place / "tars" / "x.tar", [("a.txt", b"1")])
    write_tar(place / "climbing" / "x.tar", [("../up.txt", b"1")])
    index_tars(place / "climbing")
    ss.pack_images(place / "photos", place / "edited")
    write_files(place / "edited", {".nv-meta/split.yaml": b"split_parts: {}\n"})
    before = {name for name in files_of(place) if not name.startswith("edited")}
    done = here(*command.split(), cwd=place)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("streamshard: ")
    assert done.err.count("\n") == 1
    assert named in done.err
    assert {name for name in files_of(place) if not name.startswith("edited")} == before
