"""Workers that are killed, stuck, orphaned or failing: no hang, no gap, nothing left."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.stream.workers import WorkerPool
from tests.stream.data import collect, make_tars


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tars(tmp_path_factory.mktemp("tars"), (100, 100, 100))


def pids(loader: ss.StreamLoader) -> list[int]:
    pool = loader._pool
    assert isinstance(pool, WorkerPool)
    return [int(handle.process.pid or 0) for handle in pool._handles]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_a_killed_worker_is_replaced_without_a_duplicate_or_a_gap(
    tars: str, start_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, shuffle=True)
    loader = ss.StreamLoader(dataset)
    expected = collect(loader) + collect(loader)
    with ss.StreamLoader(
        dataset, num_workers=2, prefetch=2, restarts=3, start_method=start_method
    ) as loader:
        seen = []
        for _ in range(2):
            for batch in loader:
                seen.append(batch["__key__"])
                if len(seen) in (3, 17, 40):
                    os.kill(pids(loader)[len(seen) % 2], signal.SIGKILL)
    assert seen == expected
    messages = [record.message for record in caplog.records if "SIGKILL" in record.message]
    assert len(messages) == 3


def test_past_the_restarts_it_is_an_error_that_names_worker_and_shards(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10)
    loader = ss.StreamLoader(dataset, num_workers=2, prefetch=1, restarts=0)
    iterator = iter(loader)
    next(iterator)
    os.kill(pids(loader)[1], signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(
        ss.errors.WorkerError,
        match=r"worker 1 .* SIGKILL before step \d+ of epoch 0, which reads .*/shard-00000\d.tar",
    ):
        list(iterator)
    assert time.monotonic() - begin < 10


def test_the_rest_goes_on_after_an_error(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10)
    with ss.StreamLoader(dataset, num_workers=2, prefetch=1, restarts=0) as loader:
        iterator = iter(loader)
        received = [next(iterator)["__key__"]]
        os.kill(pids(loader)[1], signal.SIGKILL)
        with pytest.raises(ss.errors.WorkerError):
            received.extend(batch["__key__"] for batch in iterator)
        loader.load_state_dict(loader.state_dict())
        assert received + collect(loader) == collect(ss.StreamLoader(dataset))


def fail_on_one(text: str) -> str:
    if text == "s1/0005":
        raise ZeroDivisionError("on purpose")
    return text


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_sample_names_it_and_shows_the_cause(tars: str, workers: int) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, decode={"txt": fail_on_one})
    with ss.StreamLoader(dataset, num_workers=workers) as loader:
        iterator = iter(loader)
        for _ in range(10):
            next(iterator)  # what lies before the bad sample is delivered
        with pytest.raises(ss.errors.SampleError, match=r"s1/0005.*ZeroDivisionError") as caught:
            next(iterator)
    assert "shard-000001.tar" in str(caught.value)
    assert "fail_on_one" in str(caught.value) or caught.value.__cause__ is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_and_leave_the_steps_as_they_are(
    tars: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, decode={"txt": fail_on_one}, on_error="skip")
    with ss.StreamLoader(dataset, num_workers=workers) as loader:
        batches = list(loader)
        assert loader.skipped == 1
    assert [len(batch["txt"]) for batch in batches] == [10] * 10 + [9] + [10] * 19
    assert all(len(batch["cls"]) == len(batch["__key__"]) for batch in batches)
    assert "s1/0005" in batches[10].skipped[0]
    assert any("s1/0005" in record.message for record in caplog.records)


def test_more_skipped_samples_than_allowed_are_an_error(tars: str) -> None:
    dataset = ss.ShardDataset(
        tars, batch_size=10, decode={"txt": fail_on_one}, on_error="skip", max_errors=0
    )
    with pytest.raises(ss.errors.SampleError, match="more than 0 samples"):
        list(ss.StreamLoader(dataset))


SCRIPT = """
import os, signal, sys, time
import streamshard as ss
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
def slow(text):
    if sys.argv[2] == "stuck": time.sleep(600)
    return text
loader = ss.StreamLoader(
    ss.ShardDataset(sys.argv[1], batch_size=10, decode={"txt": slow}), num_workers=2
)
iterator = iter(loader)
if sys.argv[2] == "idle":
    next(iterator)
else:
    loader._running_pool(loader.dataset.world).start(loader._cursor)
print(*[handle.process.pid for handle in loader._pool._handles], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("state", ["idle", "stuck"])
def test_no_worker_outlives_its_trainer(tars: str, how: signal.Signals, state: str) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tars, state],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert trainer.stdout
    workers = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(workers) == 2
    assert not any(map(gone, workers))
    trainer.send_signal(how)
    assert wait_until(lambda: all(map(gone, workers)), 5.0)
    trainer.stdout.close()
    trainer.wait(10)


def test_closing_and_dropping_a_loader_ends_its_workers(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10)
    loader = ss.StreamLoader(dataset, num_workers=2)
    iterator: Any = iter(loader)
    next(iterator)
    workers = pids(loader)
    del iterator, loader
    assert wait_until(lambda: all(map(gone, workers)), 5.0)


def test_workers_go_on_into_the_next_epoch_by_themselves(
    tars: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with ss.StreamLoader(ss.ShardDataset(tars, batch_size=10), num_workers=2) as loader:
        list(loader)
        pool = loader._pool
        assert isinstance(pool, WorkerPool)
        assert pool._generation == 1
        list(loader)
        assert pool._generation == 1, "a second order would have emptied the pipeline"
        before = pids(loader)
        list(loader)
        assert pids(loader) == before


def test_few_descriptors_are_held_by_kept_batches(tars: str) -> None:
    with ss.StreamLoader(ss.ShardDataset(tars, batch_size=1), num_workers=2) as loader:
        iterator = iter(loader)
        kept = [next(iterator) for _ in range(40)]  # the few that workers remember
        before = len(os.listdir("/proc/self/fd"))
        workers = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids(loader)]
        kept += [next(iterator) for _ in range(200)]
        assert len(os.listdir("/proc/self/fd")) <= before
        assert len(kept) == 240
        later = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids(loader)]
    assert all(now <= then + 10 for now, then in zip(later, workers, strict=True))
