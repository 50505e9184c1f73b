"""Packing on a real Dask cluster: a scheduler and its workers, each a process, on loopback."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamshard.pack.cluster import on_cluster
from streamshard.pack.images import pack_images
from tests.cli.command import environment, streamshard_command
from tests.pack.sources import files_of, image_bytes, write_files

pytest.importorskip("distributed")


def started(folder: Path, *arguments: str, wanted: str) -> tuple[subprocess.Popen[str], str]:
    """A dask process that has said that it is there, and the line in which it said so."""
    log = folder / f"{arguments[0]}-{len(list(folder.iterdir()))}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            stdout=file,
            stderr=file,
            cwd=folder,  # not where the tests run: a relative path would lead nowhere
            env=environment(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1"),
            text=True,
        )
    for _ in range(600):
        if found := re.search(wanted, log.read_text()):
            return process, found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


class Cluster:
    """A scheduler and the workers that were asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        where = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.scheduler, self.address = started(
            folder, "scheduler", *where, wanted=r"tcp://127\.0\.0\.1:\d+"
        )
        self.workers: list[subprocess.Popen[str]] = []

    def add_worker(self) -> None:
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
        worker, _ = started(
            self._folder, "worker", self.address, *options, wanted="Registered to:|registered"
        )
        self.workers.append(worker)

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dask")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with contextlib.closing(_Closing(Cluster(folder))) as closing:
        closing.cluster.add_worker()
        closing.cluster.add_worker()
        yield closing.cluster


class _Closing:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def close(self) -> None:
        self.cluster.end()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    write_files(
        root / "photos",
        {f"{n % 3}/{n:03d}.png": image_bytes(size=(60, 40), seed=n) for n in range(400)},
    )
    return root


def test_a_pack_with_scheduler_writes_what_a_local_one_writes(
    cluster: Cluster, photos: Path, tmp_path: Path
) -> None:
    options = ("--resize", "20", "--format", "jpg", "--shard-size", "100KB")
    for name, more in (("here", ()), ("there", ("--scheduler", cluster.address))):
        done = streamshard_command(
            "pack", "images", "photos", tmp_path / name, *options, *more, cwd=photos
        )
        assert (done.status, done.err) == (0, "")
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def test_a_worker_that_is_killed_on_the_way_changes_no_byte(
    cluster: Cluster, photos: Path, tmp_path: Path
) -> None:
    options = {"resize": 20, "format": "jpg", "shard_size": "50KB"}
    pack_images(photos / "photos", tmp_path / "here", **options)  # type: ignore[arg-type]
    killed: list[int] = []

    def kill_one(done: int, total: int | None, nbytes: int) -> None:
        if not killed and done >= 40:
            cluster.workers[0].send_signal(signal.SIGKILL)
            killed.append(done)

    with on_cluster(cluster.address) as execution:
        pack_images(
            photos / "photos",
            tmp_path / "there",
            **options,  # type: ignore[arg-type]
            **{**execution, "progress": kill_one},
        )
    assert killed[0] < 400
    assert cluster.workers[0].wait() == -signal.SIGKILL
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    cluster.workers.pop(0)
    cluster.add_worker()


def test_where_nobody_answers_it_is_said_in_one_line(photos: Path, tmp_path: Path) -> None:
    done = streamshard_command(
        "pack", "images", photos / "photos", tmp_path / "dst", "--scheduler", "tcp://127.0.0.1:9"
    )
    assert done.status == 1
    assert re.fullmatch(
        r"streamshard: tcp://127\.0\.0\.1:9: no Dask scheduler answers there .*\n", done.err
    )
    assert not (tmp_path / "dst").exists()
