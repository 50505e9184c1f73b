"""Packs killed at random moments: no shard is seen that is not whole, and re-runs are the same."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import streamshard as ss
from tests.cli.command import COMMAND, environment
from tests.pack.crashes import (
    assert_nothing_half,
    begin_child,
    end_of_child,
    in_child,
    wait_for_session,
)
from tests.pack.sources import class_folders, files_of, ring

Pack = Callable[..., Any]


def images(root: Path) -> Pack:
    photos = class_folders(root / "photos", each=30)

    def pack(folder: Path, workers: int, **options: Any) -> None:
        ss.pack_images(photos, folder, shard_size=20_000, format="npy", workers=workers, **options)

    return pack


def graphs(root: Path) -> Pack:
    for number in range(30):
        rings = [ring(3 + (number + n) % 9, y=torch.tensor([n])) for n in range(4)]
        (root / "graphs").mkdir(exist_ok=True)
        torch.save(rings, root / "graphs" / f"{number:02d}.pt")

    def pack(folder: Path, workers: int, **options: Any) -> None:
        ss.pack_graphs(root / "graphs", folder, shard_size=30_000, workers=workers, **options)

    return pack


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Pack, dict[str, bytes]]]:
    """Packs by kind, and the files that one leaves which nothing interrupted."""
    made = {}
    for kind, source in (("images", images), ("graphs", graphs)):
        root = tmp_path_factory.mktemp(kind)
        pack = source(root)
        pack(root / "whole", 0)
        made[kind] = pack, files_of(root / "whole")
        assert len(list((root / "whole").glob("*.tar"))) > 4
    return made


def seconds_of(pack: Pack, folder: Path, workers: int) -> float:
    """How long a pack takes that nothing interrupts."""
    times = []
    for _ in range(3):
        begin = time.monotonic()
        assert in_child(lambda: pack(folder, workers)) == 0
        times.append(time.monotonic() - begin)
        shutil.rmtree(folder)
    return statistics.median(times)


BLOCKS = [pytest.param(50, block, marks=pytest.mark.slow) for block in range(10)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["images", "graphs"])
@pytest.mark.parametrize(("kills", "block"), [(2, 0), *BLOCKS])
def test_packs_killed_at_random_moments_go_on_to_the_same_bytes(
    tmp_path: Path,
    packs: dict[str, tuple[Pack, dict[str, bytes]]],
    kind: str,
    workers: int,
    kills: int,
    block: int,
) -> None:
    pack, whole = packs[kind]
    seconds = seconds_of(pack, tmp_path / "timed", workers)
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    folder, again = tmp_path / "own", tmp_path / "again"
    done = 0
    while done < kills:
        pid = begin_child(lambda: pack(folder, workers, resume=True))
        time.sleep(chance.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = end_of_child(pid)
        assert status in (0, -signal.SIGKILL), seed
        assert_nothing_half(folder, whole)
        if status == 0:
            assert files_of(folder) == whole, seed
            shutil.rmtree(folder)
            continue
        done += 1
        if folder.exists():
            shutil.copytree(folder, again)
        pack(again, 0, resume=True)
        assert files_of(again) == whole, seed
        shutil.rmtree(again)
        if chance.random() < 0.3:  # else the next one is killed where this one left off
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_command_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path, kills: int) -> None:
    photos = class_folders(tmp_path / "photos", each=120)
    options = ("--shard-size", "20KB", "--format", "npy", "--workers", 2, "--resume")
    arguments = [*map(str, ("pack", "images", photos, tmp_path / "own", *options))]
    ss.pack_images(photos, tmp_path / "whole", shard_size="20KB", format="npy", workers=0)
    whole = files_of(tmp_path / "whole")
    for _ in range(kills):
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment(), start_new_session=True, **quiet
        )
        before = len([*tmp_path.glob("own/*.tar")])
        while process.poll() is None and len([*tmp_path.glob("own/*.tar")]) <= before:
            time.sleep(0.002)
        process.kill()
        process.wait()
        wait_for_session(process.pid)
        assert_nothing_half(tmp_path / "own", whole)
    ss.pack_images(
        photos, tmp_path / "own", shard_size="20KB", format="npy", workers=0, resume=True
    )
    assert files_of(tmp_path / "own") == whole
