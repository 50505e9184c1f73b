from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.cli.main import main
from tests.cli.command import (
    COMMAND,
    Here,
    environment,
    streamshard_command,
    without_progress,
)
from tests.pack.datasets import TU
from tests.pack.sources import class_folders, files_of, image_bytes, write_files, write_tar

GRAPHS = b"""
import torch
from torch_geometric.data import Data

def rings():
    return [
        Data(x=torch.ones(n, 2), edge_index=torch.zeros(2, n).long(), name=f"ring {n}")
        for n in range(1, 21)
    ]

def stuck():
    yield from rings()
    print("ready", flush=True)
    import time
    time.sleep(100)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, what the API makes of them, and a file of graphs."""
    root = tmp_path_factory.mktemp("place")
    class_folders(root / "photos", ["ant", "bee"], each=10)
    ss.pack_images(root / "photos", root / "packed", shard_size=10_000)
    return write_files(root, {"graphs.py": GRAPHS})


def one_object(text: str) -> dict[str, Any]:
    """Standard output that is exactly one JSON object on one line."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def test_pack_images_writes_what_the_api_writes(place: Path, tmp_path: Path) -> None:
    done = streamshard_command(
        "pack", "images", place / "photos", tmp_path / "dst", "--shard-size", "10KB", "--json"
    )
    assert (done.status, done.err) == (0, "")
    assert files_of(tmp_path / "dst") == files_of(place / "packed")
    result = one_object(done.out)
    assert result.pop("seconds") > 0
    assert result == {
        "samples": 20,
        "shards": len(ss.open(str(place / "packed")).manifest.table),
        "bytes": sum(path.stat().st_size for path in place.glob("packed/*.tar")),
        "skipped": [],
        "notes": [],
        "fingerprint": ss.open(str(place / "packed")).manifest.fingerprint,
    }


def test_the_options_of_pack_images_arrive(place: Path, tmp_path: Path, here: Here) -> None:
    options: dict[str, Any] = {"resize": 4, "quality": 50, "seed": 3, "keys": "number"}
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    write_files(tmp_path / "dst", {"shard-000000.tar": b"an earlier one"})
    done = here(
        *("pack", "images", place / "photos", tmp_path / "dst", *flags),
        *("--format", "jpg", "--shard-size", "5KB", "--workers", 0, "--overwrite"),
        cwd=tmp_path,
    )
    assert (done.status, done.err) == (0, "")
    ss.pack_images(
        place / "photos", tmp_path / "api", format="jpg", shard_size=5_000, workers=0, **options
    )
    assert files_of(tmp_path / "dst") == files_of(tmp_path / "api")
    assert done.out.startswith(f"{tmp_path}/dst: 20 samples in ")
    assert ss.open(str(tmp_path / "api")).manifest.fingerprint in done.out


def test_a_pack_that_ended_on_the_way_is_gone_on_with(
    place: Path, tmp_path: Path, here: Here
) -> None:
    photos = class_folders(tmp_path / "photos", ["ant", "bee"], each=10)
    kept = (photos / "bee/5.png").read_bytes()
    (photos / "bee/5.png").write_bytes(b"no image")
    pack = ("pack", "images", "photos", "dst", "--shard-size", "10KB", "--no-shuffle")
    done = here(*pack, cwd=tmp_path)
    assert done.status == 1
    assert "bee/5.png" in done.err
    assert done.err.endswith("shards are finished: --resume (resume=True) goes on\n")
    done = here(*pack, cwd=tmp_path)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "dst holds a pack that was not finished; --resume" in done.err
    done = here("info", "dst", cwd=tmp_path)
    assert "pack again with --resume or --overwrite" in done.err
    done = here(*pack, "--resume", "--shard-size", "9KB", cwd=tmp_path)
    assert done.status == 1
    assert "has shard_size 10000, this one 9000" in done.err.splitlines()[-1]
    (photos / "bee/5.png").write_bytes(kept)
    done = here(*pack, "--resume", cwd=tmp_path)
    assert done.status == 0
    assert re.fullmatch(r"dst: \d shards, 1\d inputs done; going on\n", done.err)
    assert done.out.startswith("dst: 20 samples in ")
    ss.pack_images(photos, tmp_path / "api", shard_size=10_000, shuffle=False)
    assert files_of(tmp_path / "dst") == files_of(tmp_path / "api")
    done = here(*pack, "--resume", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1] == "finished already: nothing was done"
    done = here(*pack, "--resume", "--overwrite", cwd=tmp_path)
    assert done.status == 2


def test_skipped_images_are_counted_and_listed(tmp_path: Path, here: Here) -> None:
    files = {"a.png": image_bytes(), "b c.png": b"no image", "d.png": image_bytes("PNG")[:-30]}
    write_files(tmp_path / "src", files)
    flags = ("--on-error", "skip", "--no-shuffle")
    done = here("pack", "images", "src", "dst", *flags, cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("dst: 1 samples in 1 shards")
    assert lines[-3] == "2 inputs were skipped:"
    assert "b c.png" in lines[-2]
    assert "d.png" in lines[-1]


def test_pack_graphs_takes_a_file_of_the_current_folder(
    place: Path, tmp_path: Path, here: Here
) -> None:
    done = here("pack", "graphs", "graphs.py:rings", tmp_path / "dst", "--json", cwd=place)
    assert (done.status, done.err) == (0, "")
    assert one_object(done.out)["samples"] == 20
    shards = ss.open(str(tmp_path / "dst"))
    assert sorted(shards.keys()) == [f"{number:06d}" for number in range(20)]
    for sample in (shards[number] for number in range(20)):
        nodes = int(sample["__key__"]) + 1
        assert sample["graph"].num_nodes == nodes
        assert sample["json"] == {"name": f"ring {nodes}"}


def test_pack_graphs_takes_files_with_their_options(tmp_path: Path, here: Here) -> None:
    text = "name,molecule,a,b\nethanol,CCO,1,2\nnonsense,C1C,3,4\nmethane,C,5,6\n"
    write_files(tmp_path, {"a.csv": text.encode()})
    columns = ("--smiles", "molecule", "--target", "b", "--target", "a")
    done = here(
        *("pack", "graphs", "a.csv", "dst", *columns, "--on-error", "skip", "--workers", 1),
        cwd=tmp_path,
    )
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("dst: 2 samples in 1 shards")
    assert lines[-2] == "1 inputs were skipped:"
    assert "a.csv:3: SMILES 'C1C'" in lines[-1]
    options: dict[str, Any] = {"smiles": "molecule", "targets": ["b", "a"], "on_error": "skip"}
    ss.pack_graphs(tmp_path / "a.csv", tmp_path / "api", **options)
    assert files_of(tmp_path / "dst") == files_of(tmp_path / "api")


def test_pack_graphs_gives_a_dataset_its_arguments(tmp_path: Path, here: Here) -> None:
    write_files(tmp_path, {f"root/TINY/raw/TINY_{name}": t.encode() for name, t in TU.items()})
    args = ("--arg", "root=root", "--arg", "name=TINY", "--arg", "use_node_attr=true")
    spec = "torch_geometric.datasets:TUDataset"
    done = here("pack", "graphs", spec, "dst", *args, "--json", cwd=tmp_path)
    assert done.status == 0
    assert one_object(done.out)["samples"] == 2
    shards = ss.open(str(tmp_path / "dst"))
    assert sorted(shards[row]["graph"].num_nodes for row in range(2)) == [2, 3]


def test_index_makes_sidecars_that_every_command_reads(tmp_path: Path, here: Here) -> None:
    write_tar(tmp_path / "own" / "x.tar", [("a.txt", b"12"), ("a.CLS", b"7"), ("b.txt", b"345")])
    done = streamshard_command("index", "own/x.tar", "--out", "index", "--json", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert one_object(done.out)["samples"] == 2
    assert set(files_of(tmp_path / "own")) == {"x.tar"}
    listed = here("ls", "own", "--index", "index", cwd=tmp_path)
    assert (listed.status, listed.err) == (0, "")
    assert listed.out == "a\tx.tar\ttxt:2 cls:1\nb\tx.tar\ttxt:3\n"
    verified = here("verify", "own", "--index", "index", "--json", cwd=tmp_path)
    assert one_object(verified.out) == {"whole": True, "samples": 2, "findings": []}


def test_info_tells_what_a_dataset_is(place: Path, here: Here) -> None:
    done = here("info", "packed", cwd=place)
    assert (done.status, done.err) == (0, "")
    manifest = ss.open(str(place / "packed")).manifest
    assert f"20 samples in {len(manifest.table)} shards" in done.out
    assert f"fingerprint {manifest.fingerprint}\n" in done.out
    assert "part png: image, size [7, 9]\n" in done.out
    assert "part cls: int\n" in done.out
    assert "2 classes: ant, bee\n" in done.out
    result = one_object(here("info", "packed", "--json", cwd=place).out)
    assert result == {
        "samples": 20,
        "shards": len(manifest.table),
        "bytes": int(manifest.table.nbytes.sum()),
        "parts": {"png": {"codec": "image", "size": [7, 9]}, "cls": {"codec": "int"}},
        "classes": ["ant", "bee"],
        "fingerprint": manifest.fingerprint,
    }


def test_ls_gives_one_line_or_one_object_for_each_sample(place: Path, here: Here) -> None:
    shards = ss.open(str(place / "packed"))
    done = here("ls", "packed", cwd=place)
    assert (done.status, done.err) == (0, "")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [key for key, _, _ in lines] == list(shards.keys())
    as_json = here("ls", "packed", "--json", cwd=place)
    objects = [json.loads(line) for line in as_json.out.splitlines()]
    assert len(objects) == len(lines) == 20
    for (key, shard, sizes), value in zip(lines, objects, strict=True):
        png = (place / "photos" / f"{key}.png").stat().st_size
        assert value == {"key": key, "shard": shard, "parts": {"png": png, "cls": 1}}
        assert sizes == f"png:{png} cls:1"


def test_verify_says_that_all_is_whole(place: Path, here: Here) -> None:
    done = here("verify", "packed", cwd=place)
    assert (done.status, done.err) == (0, "")
    shards = len(ss.open(str(place / "packed")).manifest.table)
    assert done.out == f"packed: 20 samples in {shards} shards, all whole\n"


def test_version_and_help_are_printed(tmp_path: Path, here: Here) -> None:
    version = streamshard_command("--version")
    assert version == (0, f"streamshard {ss.__version__}\n", "")
    for arguments in (["--help"], ["pack", "images", "--help"]):
        done = here(*arguments, cwd=tmp_path)
        assert (done.status, done.err) == (0, "")
        wanted = (
            ["pack", "index", "info", "ls", "verify", "plan"]
            if len(arguments) == 1
            else ["--resize"]
        )
        assert all(word in done.out for word in wanted)


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    # What `streamshard ls packed | head -1` comes to, at its worst: nobody reads at all.
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "ls", "packed"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env=environment(),
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_a_full_disk_under_what_is_printed_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["streamshard", "ls", str(place / "packed")])
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="1"):
            main()
    assert capsys.readouterr().err == "streamshard: standard output: No space left on device\n"


def test_an_interrupted_pack_leaves_no_dataset_and_no_temporary_file(
    place: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "pack", "graphs", "graphs.py:stuck", str(tmp_path / "dst")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env=environment(),
        # Where the tests themselves run in the background, children would ignore it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert without_progress(err).count("\n") <= 1
    assert files_of(tmp_path) == {}


def test_class_names_that_are_no_text_are_printed_all_the_same(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {os.fsdecode(b"caf\xe9/1.png"): image_bytes(), "ü/2.png": b""})
    (tmp_path / "src" / "ü" / "2.png").write_bytes(image_bytes())
    ss.pack_images(tmp_path / "src", tmp_path / "dst")
    done = streamshard_command("info", "dst", cwd=tmp_path, PYTHONIOENCODING="utf-8:strict")
    assert (done.status, done.err) == (0, "")
    assert "2 classes: " in done.out
