"""`streamshard verify` with its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import streamshard as ss
from streamshard.shard.manifest import FOLDER, HEAD, TABLE
from tests.cli.command import Here, streamshard_command
from tests.pack.sources import class_folders, files_of, image_bytes, tars_of, write_tar


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    class_folders(tmp_path / "photos", ["ant", "bee"], each=6)
    ss.pack_images(tmp_path / "photos", tmp_path / "set", shard_size=6_000)
    return tmp_path / "set"


def test_decode_and_workers_find_what_can_not_be_decoded(tmp_path: Path, here: Here) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / "own" / f"{name}.tar", [(f"{name}.jpg", b"no image")])
    assert here("index", "own", cwd=tmp_path).status == 0
    assert here("verify", "own", cwd=tmp_path).status == 0
    done = streamshard_command("verify", "own", "--decode", "--workers", 2, cwd=tmp_path)
    assert (done.status, done.err) == (1, "")
    assert done.out.splitlines() == [
        f"own/{name}.tar: key {name}, part jpg at offset 512: can't be decoded: "
        "not an image (cannot identify image file)"
        for name in ("a", "b")
    ]


def test_findings_are_bounded_on_a_terminal_and_all_in_json(tmp_path: Path, here: Here) -> None:
    members = [(f"{number:03d}.jpg", b"no image") for number in range(150)]
    write_tar(tmp_path / "own" / "a.tar", members)
    ss.index_tars(tmp_path / "own")
    done = here("verify", "own", "--decode", cwd=tmp_path)
    assert len(done.out.splitlines()) == 101
    assert done.out.splitlines()[-1] == "and 50 more; --json lists all"
    as_json = json.loads(here("verify", "own", "--decode", "--json", cwd=tmp_path).out)
    assert len(as_json["findings"]) == 150


def test_a_repair_lists_what_it_did_and_then_all_is_whole(packed: Path, here: Here) -> None:
    before = files_of(packed)
    (packed / TABLE).unlink()
    (packed / FOLDER / "shard-000001.index.safetensors").write_bytes(b"x")
    assert here("verify", "set", cwd=packed.parent).status == 1
    done = here("verify", "set", "--repair", cwd=packed.parent)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("set/.streamshard/shard-000001.index.safetensors: rebuilt; it was d")
    assert lines[1] == "set/.streamshard/shards.safetensors: rebuilt; it was missing"
    assert lines[2].endswith("all whole")
    assert files_of(packed) == before
    again = here("verify", "set", "--repair", cwd=packed.parent)
    assert again.out.splitlines()[0] == "set: nothing to repair"


def test_changes_are_refused_and_then_accepted_with_a_new_fingerprint(
    packed: Path, here: Here
) -> None:
    was = ss.open(packed).manifest.fingerprint
    shards = ss.open(packed)
    at = int(shards.extent(0, "cls").offset[0])
    data = bytearray(tars_of(packed)[0].read_bytes())
    data[at] = ord("1") if data[at] == ord("0") else ord("0")
    tars_of(packed)[0].write_bytes(data)
    done = here("verify", "set", "--repair", cwd=packed.parent)
    assert (done.status, done.err) == (1, "")
    first, second = done.out.splitlines()
    key = shards.index(0).keys[0]
    assert first.endswith(f"shard-000000.tar: not what was packed: samples 1 changed ({key})")
    assert "--accept-changes" in second
    done = here("verify", "set", "--repair", "--accept-changes", "--json", cwd=packed.parent)
    assert done.status == 0
    value = json.loads(done.out)
    now = ss.open(packed)
    assert value["whole"]
    assert value["repair"]["was"] == was
    assert value["repair"]["fingerprint"] == now.manifest.fingerprint != was
    assert now.classes == ["ant", "bee"]


def test_what_can_not_be_repaired_is_named_with_status_1(packed: Path, here: Here) -> None:
    tars_of(packed)[0].write_bytes(image_bytes())
    (packed / HEAD).unlink()
    done = here("verify", "set", "--repair", cwd=packed.parent)
    assert (done.status, done.err) == (1, "")
    assert done.out.startswith("not repaired: set/shard-000000.tar: ")
    assert not (packed / HEAD).exists()


def test_a_lost_manifest_names_the_command_that_rebuilds_it(packed: Path, here: Here) -> None:
    (packed / HEAD).unlink()
    done = here("info", "set", cwd=packed.parent)
    assert done.status == 1
    assert "`streamshard verify --repair`" in done.err
    assert here("verify", "set", "--repair", cwd=packed.parent).status == 0
    assert here("info", "set", cwd=packed.parent).status == 0


def test_accept_changes_without_repair_is_wrong_usage(packed: Path, here: Here) -> None:
    done = here("verify", "set", "--accept-changes", cwd=packed.parent)
    assert done.status == 2
    assert "--repair" in done.err
