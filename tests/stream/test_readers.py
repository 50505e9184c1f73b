"""A dataset and what was exported beside it, as the readers of others read it: the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import streamshard as ss
from streamshard.stream.export import export
from tests.pack.sources import class_folders, read_by_streamshard, ring, tars_of

READERS = Path(__file__).parent / "readers"
ROOT = Path(__file__).parents[2]
PEERS = Path(os.environ.get("STREAMSHARD_PEERS", ROOT / ".peers"))

Digests = list[tuple[str, dict[str, str]]]  # key and the SHA-256 of each part, sorted by key


def read_by(reader: str, *arguments: object, peer: str | None = None, cwd: Path) -> Digests:
    """What a reader makes of it, in a process and perhaps an environment of its own."""
    python = Path(sys.executable)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf")}
    env |= {"TMPDIR": str(cwd), "WIDS_CACHE": str(cwd / "wids")}
    if peer is not None:
        python = PEERS / peer / "bin" / "python"
        if not python.exists():
            pytest.skip(f"tools/peers {peer} installs it")
        env["PYTHONPATH"] = str(Path(torch.__file__).parents[1])  # what it is lent
    done = subprocess.run(
        [python, READERS / f"of_{reader}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    samples = [(key, parts) for key, parts in json.loads(done.stdout.splitlines()[-1])]
    return sorted(samples)


def expected(folder: Path) -> Digests:
    """What streamshard reads."""
    return sorted(
        (key, {suffix: hashlib.sha256(data).hexdigest() for suffix, data in parts.items()})
        for key, parts in read_by_streamshard(str(folder))
    )


@pytest.fixture(params=["one shard", "several"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Images."""
    size = 6_000 if request.param == "several" else 1_000_000
    class_folders(tmp_path / "photos")
    ss.pack_images(tmp_path / "photos", tmp_path / "own", shard_size=size)
    assert (len(tars_of(tmp_path / "own")) > 1) == (request.param == "several")
    return tmp_path / "own"


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    ss.pack_graphs(map(ring, range(1, 30)), tmp_path / "graphs", shard_size=20_000)
    return tmp_path / "graphs"


def test_datasets_reads_the_tars_whatever_lies_beside_them(own: Path, tmp_path: Path) -> None:
    export(own, "wids,dali,energon")
    assert read_by("datasets", own, "*.tar", cwd=tmp_path) == expected(own)


def test_datasets_reads_a_folder_with_our_sidecars_and_those_of_wids(
    own: Path, tmp_path: Path
) -> None:
    export(own, "wids")
    assert read_by("datasets", own, cwd=tmp_path) == expected(own)


def test_datasets_reads_graphs_as_bytes(graphs: Path, tmp_path: Path) -> None:
    export(graphs, "wids,dali,energon")
    assert read_by("datasets", graphs, "*.tar", cwd=tmp_path) == expected(graphs)


@pytest.mark.slow
def test_wids_reads_what_was_exported(own: Path, graphs: Path, tmp_path: Path) -> None:
    for folder in (own, graphs):
        export(folder, "wids")
        assert read_by("wids", folder, peer="wids", cwd=tmp_path) == expected(folder)


@pytest.mark.slow
def test_dali_reads_what_was_exported(own: Path, graphs: Path, tmp_path: Path) -> None:
    for folder, parts in ((own, ("png", "cls")), (graphs, ("graph.safetensors",))):
        export(folder, "dali")
        assert read_by("dali", folder, *parts, peer="dali", cwd=tmp_path) == expected(folder)


@pytest.mark.slow
def test_energon_reads_what_was_exported_and_would_prepare_the_same(
    own: Path, graphs: Path, tmp_path: Path
) -> None:
    for folder in (own, graphs):
        prepared = tmp_path / f"{folder.name}-prepared"
        shutil.copytree(folder, prepared)
        export(folder, "energon")
        found = read_by("energon", folder, prepared, peer="energon", cwd=tmp_path)
        assert found == expected(folder)
        assert meant_by_energon(folder) == meant_by_energon(prepared)


def meant_by_energon(folder: Path) -> dict[str, object]:
    """All that Energon's files say, without how it is spelled."""
    meta = folder / ".nv-meta"
    database = sqlite3.connect(meta / "index.sqlite")
    tables = {
        name: database.execute(f"SELECT * FROM {name} ORDER BY 1, 3, 2").fetchall()
        for name in ("samples", "sample_parts")
    }
    indexes = database.execute("SELECT name FROM sqlite_master WHERE type = 'index' ORDER BY 1")
    tables["indexes"] = indexes.fetchall()
    database.close()
    return {
        **tables,
        "info": json.loads((meta / ".info.json").read_text()),
        "offsets": [Path(f"{path}.idx").read_bytes() for path in tars_of(folder)],
    }
