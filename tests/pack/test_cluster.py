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

from streamshard.errors import WorkerError
from streamshard.pack import cluster as cluster_module
from streamshard.pack.cluster import on_cluster
from streamshard.pack.images import pack_images
from streamshard.pack.options import Progress
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

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dask")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with contextlib.closing(Cluster(folder)) as cluster:
        cluster.add_worker()
        cluster.add_worker()
        yield cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, and what a pack without a cluster makes of it."""
    place = tmp_path_factory.mktemp("place")
    files = {f"{n % 3}/{n:03d}.png": image_bytes(size=(60, 40), seed=n) for n in range(400)}
    write_files(place / "photos", files)
    pack_images(
        place / "photos", place / "here", resize=20, format="jpg", shard_size="50KB", workers=0
    )
    return place


def packed_there(
    place: Path, address: str, destination: Path, progress: Progress | None = None
) -> None:
    with on_cluster(address) as execution:
        execution["progress"] = progress
        pack_images(
            place / "photos",
            destination,
            resize=20,
            format="jpg",
            shard_size="50KB",
            **execution,
        )


def test_a_pack_with_scheduler_writes_what_a_local_one_writes(
    cluster: Cluster, place: Path, tmp_path: Path
) -> None:
    options = ("--resize", "20", "--format", "jpg", "--shard-size", "50KB")
    done = streamshard_command(
        *("pack", "images", "photos", tmp_path / "there", *options),
        *("--scheduler", cluster.address),
        cwd=place,  # where the workers are not
    )
    assert done.status == 0, done.err
    assert files_of(tmp_path / "there") == files_of(place / "here")


def test_a_worker_that_is_killed_on_the_way_changes_no_byte(
    cluster: Cluster, place: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one(done: int, total: int | None, nbytes: int) -> None:
        if not killed and done >= 40:
            cluster.workers[0].send_signal(signal.SIGKILL)
            killed.append(done)

    packed_there(place, cluster.address, tmp_path / "there", kill_one)
    assert killed[0] < 400
    assert cluster.workers[0].wait() == -signal.SIGKILL
    assert files_of(tmp_path / "there") == files_of(place / "here")


def test_where_the_scheduler_is_killed_the_pack_ends_and_can_be_gone_on_with(
    cluster: Cluster, place: Path, tmp_path: Path
) -> None:
    def kill(done: int, total: int | None, nbytes: int) -> None:
        if done == 200:
            cluster.scheduler.send_signal(signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"the scheduler is gone; .*--resume"):
        packed_there(place, cluster.address, tmp_path / "there", kill)
    pack_images(
        place / "photos",
        tmp_path / "there",
        resize=20,
        format="jpg",
        shard_size="50KB",
        workers=0,
        resume=True,
    )
    assert files_of(tmp_path / "there") == files_of(place / "here")


def test_where_nobody_answers_it_is_said(
    monkeypatch: pytest.MonkeyPatch, place: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster_module, "_SECONDS", 0.3)
    with pytest.raises(WorkerError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        packed_there(place, "tcp://127.0.0.1:9", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_a_scheduler_without_workers_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Path
) -> None:
    monkeypatch.setattr(cluster_module, "_SECONDS", 2)
    with (
        contextlib.closing(Cluster(tmp_path)) as cluster,
        pytest.raises(WorkerError, match="the scheduler has no workers"),
    ):
        packed_there(place, cluster.address, tmp_path / "dst")
