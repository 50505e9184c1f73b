from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.codec.base import Packed
from streamshard.errors import WorkerError
from streamshard.pack.pool import WorkerPool
from tests.pack.sources import class_folders, files_of

STARTS = ["fork", *(pytest.param(how, marks=pytest.mark.slow) for how in ("spawn", "forkserver"))]


@pytest.fixture(params=STARTS)
def pool(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    with WorkerPool(2, multiprocessing.get_context(request.param)) as pool:
        yield pool


def number_of(number: int) -> tuple[int, int]:
    return number, os.getpid()


def fail(number: int) -> None:
    raise ValueError(number)


def end(status: int) -> None:
    os._exit(status)


def parts_of(sizes: list[int]) -> list[Packed]:
    return [Packed(bytes([size % 251]) * size, {"size": size}, {}) for size in sizes]


def unpicklable(number: int) -> Callable[[], None]:
    return lambda: None


def test_calls_are_done_by_processes_and_errors_come_back(pool: WorkerPool) -> None:
    results = [pool.submit(number_of, number) for number in range(20)]
    assert [result.result()[0] for result in results] == [*range(20)]
    pids = {result.result()[1] for result in results}
    assert os.getpid() not in pids
    assert len(pids) <= 2
    with pytest.raises(ValueError, match="7") as caught:
        pool.submit(fail, 7).result()
    assert "in fail" in caught.value.__notes__[0]
    with pytest.raises(Exception, match=r"pickle|local object"):
        pool.submit(unpicklable, 1).result()
    with pytest.raises(Exception, match=r"pickle|local object"):
        pool.submit(lambda: 1).result()
    assert pool.submit(number_of, 3).result()[0] == 3
    with pytest.raises(WorkerError, match="ended with status 5"):
        pool.submit(end, 5).result()
    assert pool.submit(number_of, 3).result()[0] == 3  # by the other one


def send_half(connection: Connection, data: Any) -> None:
    connection._send(struct.pack("!i", len(data)) + bytes(data[: len(data) // 2]))  # type: ignore[attr-defined]
    os.kill(os.getpid(), signal.SIGKILL)


def test_parts_of_any_size_come_back_as_they_are(pool: WorkerPool) -> None:
    for sizes in ([], [0, 1, 70_000], [3_000_000, 65_535, 65_536, 65_537]):
        parts = pool.submit(parts_of, sizes).result()
        assert parts == parts_of(sizes)
        assert all(type(part) is Packed and type(part.data) is bytes for part in parts)


def test_a_worker_killed_in_the_middle_of_a_result_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = class_folders(tmp_path / "photos")
    here, send = os.getpid(), Connection._send_bytes  # type: ignore[attr-defined]

    def sent(self: Connection, data: Any) -> None:
        (send if os.getpid() == here else send_half)(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "_send_bytes", sent)
        with pytest.raises(WorkerError, match=r"killed by SIGKILL \(was there memory enough\?\)"):
            ss.pack_images(source, tmp_path / "own", format="npy", workers=2, start_method="fork")
    assert list((tmp_path / "own").glob("*.tar")) == []
    ss.pack_images(source, tmp_path / "own", format="npy", workers=2, resume=True)
    ss.pack_images(source, tmp_path / "whole", format="npy", workers=0)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_the_end_of_a_pool_waits_for_nothing() -> None:
    begin = time.monotonic()
    with WorkerPool(2, multiprocessing.get_context("fork")) as pool:
        results = [pool.submit(sleep, 600) for _ in range(5)]
    assert time.monotonic() - begin < 60
    assert all(result.done() for result in results)


def test_a_worker_that_is_killed_as_it_starts_ends_those_that_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = multiprocessing.get_context("forkserver")
    start, started = context.Process.start, list[Any]()

    def start_one(process: Any) -> None:
        if started:
            raise EOFError("unexpected EOF")  # what the fork server's client says then
        start(process)
        started.append(process)

    monkeypatch.setattr(context.Process, "start", start_one)
    with pytest.raises(WorkerError, match=r"could not be started \(unexpected EOF\)"):
        WorkerPool(3, context)
    assert started[0].exitcode == -signal.SIGKILL
