"""Bad input: one line on standard error that names the thing, an exit status, no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import streamshard as ss
from tests.cli.command import Done, Here, streamshard_command
from tests.pack.sources import class_folders, image_bytes, tars_of, write_files, write_tar


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of what can go wrong."""
    root = tmp_path_factory.mktemp("wrong")
    class_folders(root / "photos", ["ant", "bee"], each=4)
    ss.pack_images(root / "photos", root / "packed")
    (root / "empty").mkdir()
    write_files(
        root,
        {
            "no-images/notes.txt": b"x",
            "unreadable/a.png": image_bytes(),
            "unreadable/b.png": image_bytes()[:-30],
            "mixed/a.png": image_bytes(),
            "mixed/b.jpg": image_bytes("JPEG"),
            "garbage/.streamshard/manifest.json": b"\x00{garbage",
            "other-json/.streamshard/manifest.json": b'["no", "manifest"]',
            "table.csv": b"a,b\nQ,1\n",
            "lines.jsonl": b'{"num_nodes": 3, "y": 1}\nthree\n',
            "graphs.py": b"NUMBER = 3\n\ndef text():\n    return ['no', 'graphs']\n",
        },
    )
    whole = write_tar(root / "no-index" / "x.tar", [("a.txt", b"a" * 900), ("b.txt", b"b" * 900)])
    write_files(root, {"cut/x.tar": whole.read_bytes()[:2_000]})
    shutil.copytree(root / "packed", root / "out-of-step")
    index = next((root / "out-of-step" / ".streamshard").glob("*.index.safetensors"))
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    shutil.copytree(root / "packed", root / "other-table")
    table = root / "other-table" / ".streamshard" / "shards.safetensors"
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    return root


@pytest.mark.parametrize(
    ("command", "status", "named"),
    [
        ("pack images nowhere dst", 1, "nowhere: no such folder"),
        ("pack images graphs.py dst", 1, "graphs.py: is a file, not a folder"),
        ("pack images empty dst", 1, "empty: no images"),
        ("pack images no-images dst", 1, "no-images: no images"),
        ("pack images unreadable dst", 1, "unreadable/b.png: "),
        ("pack images mixed dst", 1, "several formats (b.jpg, a.png); --format"),
        ("pack images photos packed", 2, "packed holds .streamshard already; --overwrite"),
        ("pack images photos dst --shard-size huge", 2, "'huge'"),
        ("pack graphs graphs dst", 2, "'graphs'"),
        ("pack graphs nowhere:rings dst", 2, "nowhere"),
        ("pack graphs graphs.py:NUMBER dst", 2, "NUMBER"),
        ("pack graphs graphs.py:text dst", 1, "000"),
        ("pack graphs graphs.py:text dst --arg x", 2, "--arg 'x': NAME=VALUE is wanted"),
        ("pack graphs graphs.py:text dst --arg x=1", 2, "graphs.py:text: got an unexpected"),
        ("pack graphs graphs.py:text dst --smiles x", 2, "--smiles and --target are for a .csv"),
        ("pack graphs empty dst", 1, "empty: no .pt file there"),
        ("pack graphs no-images dst", 1, "no-images: no .pt file there, 1 other files"),
        ("pack graphs nowhere.jsonl dst", 1, "nowhere.jsonl: not found"),
        ("pack graphs lines.jsonl dst", 1, "lines.jsonl:2: not JSON"),
        ("pack graphs table.csv dst", 2, "table.csv: which column is the molecule? --smiles"),
        ("pack graphs table.csv dst --smiles s", 2, "table.csv: no column 's'; it has a, b"),
        ("pack graphs table.csv dst --smiles a", 1, "table.csv:2: SMILES 'Q' can't be read"),
        ("pack graphs table.csv dst --smiles a --workers -1", 2, "--workers"),
        ("index nowhere", 1, "nowhere/*.tar: no such tar"),
        ("index cut", 1, "cut/x.tar: truncated"),
        ("index packed", 1, "packed has an index already"),
        ("info nowhere", 1, "nowhere: no such folder"),
        ("info empty", 1, "empty: "),
        ("info no-images", 1, "no-images: no dataset there"),
        ("info no-index", 1, "`streamshard index no-index`"),
        ("info garbage", 1, "garbage/.streamshard/manifest.json: "),
        ("info other-json", 1, "other-json/.streamshard/manifest.json: "),
        ("info other-table", 1, "other-table/.streamshard/shards.safetensors: "),
        ("ls out-of-step", 1, "shard-000000.index.safetensors: out of step"),
        # What typer itself refuses:
        ("pack images photos dst --quality 101", 2, "--quality"),
        ("pack images photos dst --format gif", 2, "--format"),
        ("pack images photos dst --colour red", 2, "--colour"),
        ("pack images photos", 2, "DST"),
        ("lst packed", 2, "lst"),
    ],
)
def test_bad_input_is_one_line_that_names_the_thing(
    place: Path, here: Here, command: str, status: int, named: str
) -> None:
    assert_refused(here(*command.split(), cwd=place), status, named)
    assert not (place / "dst" / ".streamshard" / "manifest.json").exists()


def test_a_process_ends_with_that_line_and_status(place: Path) -> None:
    done = streamshard_command("pack", "images", "photos", "packed", cwd=place)
    assert_refused(done, 2, "packed holds .streamshard already")


def assert_refused(done: Done, status: int, named: str) -> None:
    assert named in done.err
    assert done.err.startswith("streamshard: ")
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert done.status == status


def changed(folder: Path, copy: Path, at: int) -> Path:
    """A copy of a dataset with one byte of its first tar changed."""
    shutil.copytree(folder, copy)
    data = bytearray(tars_of(copy)[0].read_bytes())
    data[at] ^= 1
    tars_of(copy)[0].write_bytes(data)
    return copy


def test_verify_names_the_sample_of_a_flipped_byte(place: Path, tmp_path: Path, here: Here) -> None:
    shards = ss.open(str(place / "packed"))
    key = shards.index(0).keys[3]
    offset = int(shards.extent(0, "png").offset[3])
    copy = changed(place / "packed", tmp_path / "flipped", offset + 20)
    done = here("verify", copy, cwd=tmp_path)
    assert (done.status, done.err) == (1, "")
    assert done.out.count("\n") == 1
    assert f"shard-000000.tar: key {key}, part png at offset {offset}: crc32" in done.out
    as_json = here("verify", copy, "--json", cwd=tmp_path)
    assert (as_json.status, as_json.err) == (1, "")
    value = json.loads(as_json.out)
    assert value == {"whole": False, "samples": 8, "findings": [done.out.rstrip("\n")]}


def test_verify_goes_on_to_the_end_over_tars_cut_lost_and_swapped(
    place: Path, tmp_path: Path, here: Here
) -> None:
    ss.pack_images(place / "photos", tmp_path / "own", shard_size=6_000)
    tars = tars_of(tmp_path / "own")
    assert len(tars) == 4
    tars[0].write_bytes(tars[0].read_bytes()[:-2_000])
    tars[1].unlink()
    one, other = tars[2].read_bytes(), tars[3].read_bytes()
    assert len(one) == len(other)
    tars[2].write_bytes(other)
    tars[3].write_bytes(one)
    done = here("verify", "own", cwd=tmp_path)
    assert (done.status, done.err) == (1, "")
    findings = done.out.splitlines()
    for number, what in enumerate(["truncated", "not found", "out of step", "out of step"]):
        mine = [line for line in findings if f"own/shard-{number:06d}.tar" in line]
        assert any(what in line for line in mine), (number, findings)


def test_verify_reports_an_index_that_was_changed(place: Path, here: Here) -> None:
    done = here("verify", "out-of-step", cwd=place)
    assert (done.status, done.err) == (1, "")
    assert "shard-000000.index.safetensors: out of step" in done.out


def test_verify_tolerates_files_that_it_does_not_know(
    place: Path, tmp_path: Path, here: Here
) -> None:
    shutil.copytree(place / "packed", tmp_path / "own")
    write_files(tmp_path / "own", {"README": b"x", "x.tar": b"x", ".streamshard/more": b"x"})
    assert here("verify", "own", cwd=tmp_path).status == 0
