"""Threads: the batches that there are without them, made ahead; no setting is changed."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import streamshard as ss
from streamshard.codec.base import Form
from streamshard.stream import threads as threads_module
from streamshard.stream.opened import OpenShards
from streamshard.stream.reader import Shards
from streamshard.stream.threads import Threads, alone
from streamshard.stream.turn import Turn
from tests.stream.data import collect, make_images, make_tars, same
from tests.stream.test_workers import wait_until


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_images(tmp_path_factory.mktemp("images"), 90)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tars(tmp_path_factory.mktemp("tars"), (30, 7, 64, 19))  # 120 samples


def ours() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("streamshard")
    ]


class Told:
    """A decoder of bytes that does what it is told by the key, in whichever thread calls it."""

    form = Form(torch.int64, (1,))
    takes_bytes = True

    def __init__(self, do: Callable[[str], Any] = lambda _: None) -> None:
        self.do = do

    def __call__(self, data: bytes, generator: torch.Generator) -> torch.Tensor:
        self.do(data.decode())
        return torch.randint(1 << 40, (1,), generator=generator)


def told(url: str, do: Callable[[str], Any], **options: Any) -> ss.ShardDataset:
    return ss.ShardDataset(url, decode={"txt": Told(do)}, **{"batch_size": 10, **options})


def drawn(value: Any) -> Any:
    """A callable that draws from all global generators."""
    return torch.rand(2) + float(np.random.rand()) + random.random()


def drawn_on(image: torch.Tensor) -> torch.Tensor:
    return image[:, :9, :9].float() + torch.rand(3, 9, 9)


def with_draws(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "drawn": drawn(None)}


@pytest.mark.parametrize("options", [
    {"decode": {"jpg": ss.RandomResizedCrop(16, flip=0.5)}},
    {"decode": {"jpg": ss.RandomResizedCrop(16), "cls": drawn}, "tail": "pad"},
    {"decode": {"jpg": drawn_on}, "parts": ("cls", "jpg", "__key__"), "shuffle": False},
    {"decode": {"jpg": ss.Resize((9, 9))}, "transform": with_draws, "tail": "exact"},
    {"decode": {"jpg": bytes}},
])  # fmt: skip
@pytest.mark.parametrize(
    ("workers", "threads", "prefetch"), [(0, 1, 1), (0, 3, 4), (0, 8, 2), (2, 3, 2)]
)
def test_batches_do_not_depend_on_threads(
    images: str, options: dict[str, Any], workers: int, threads: int, prefetch: int
) -> None:
    dataset = ss.ShardDataset(images, batch_size=8, seed=3, **{"shuffle": True, **options})
    alone = ss.StreamLoader(dataset)
    expected = [list(alone) for _ in range(2)]
    with ss.StreamLoader(
        dataset, num_workers=workers, threads=threads, prefetch=prefetch, reuse=workers == 2
    ) as loader:
        for epoch in expected:
            for got, wanted in zip(loader, epoch, strict=True):
                assert same(got, wanted)


def bad(key: str) -> None:
    if zlib.crc32(key.encode()) % 7 == 0:
        raise ValueError(f"{key} is bad")


@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_samples_are_the_same_in_the_same_order(tars: str, workers: int) -> None:
    dataset = told(tars, bad, on_error="skip", shuffle=True, tail="exact")
    expected = list(ss.StreamLoader(dataset))
    assert sum(len(batch.skipped) for batch in expected) > 10
    with ss.StreamLoader(dataset, num_workers=workers, threads=4) as loader:
        for got, wanted in zip(loader, expected, strict=True):
            assert same(got, wanted)
            assert got.skipped == wanted.skipped


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_is_that_of_the_first_sample_in_the_batch(tars: str, workers: int) -> None:
    def fail(key: str) -> None:
        if key == "s0/0013":
            time.sleep(0.05)
        if key in ("s0/0013", "s0/0014", "s0/0027"):
            raise ZeroDivisionError

    with ss.StreamLoader(told(tars, fail), num_workers=workers, threads=4) as loader:
        iterator = iter(loader)
        assert len(next(iterator)["__key__"]) == 10  # what lies before it is delivered
        with pytest.raises(ss.errors.SampleError, match=r"s0/0013.*ZeroDivisionError"):
            next(iterator)
        assert not ours(), "threads live on after an error"


def test_samples_are_decoded_by_several_threads_and_functions_called_by_the_loop(tars: str) -> None:
    decoded: set[int] = set()
    called: list[int] = []
    meet = threading.Barrier(3, timeout=10)  # all three threads are in the decoder at once

    def decode(_: str) -> None:
        meet.wait()
        decoded.add(threading.get_ident())

    def call(value: int) -> int:
        called.append(threading.get_ident())
        return value

    dataset = ss.ShardDataset(tars, batch_size=30, decode={"txt": Told(decode), "cls": call})
    with ss.StreamLoader(dataset, threads=3) as loader:
        next(iter(loader))
        assert set(called) == {threading.get_ident()}
        assert len(called) == 30
        assert len(decoded) == 3
        assert threading.get_ident() not in decoded
        meet.abort()


@pytest.mark.parametrize("prefetch", [1, 3])
def test_as_many_batches_as_said_are_ready_and_no_more(tars: str, prefetch: int) -> None:
    count = iter(range(10**9))
    numbers: list[int] = []
    dataset = told(tars, lambda _: numbers.append(next(count)))
    with ss.StreamLoader(dataset, threads=2, prefetch=prefetch) as loader:
        iterator = iter(loader)
        next(iterator)
        # one is delivered, `prefetch` are ready, and of one more the samples
        assert wait_until(lambda: len(numbers) >= 10 * (prefetch + 2), 5)
        time.sleep(0.05)
        assert len(numbers) == 10 * (prefetch + 2)
        next(iterator)
        assert wait_until(lambda: len(numbers) >= 10 * (prefetch + 3), 5)


def test_the_next_epoch_is_begun_by_itself(tars: str) -> None:
    numbers: list[str] = []
    dataset = told(tars, numbers.append, parts=("txt",))
    with ss.StreamLoader(dataset, threads=2, prefetch=2) as loader:
        list(loader)
        assert wait_until(lambda: len(numbers) >= 130, 5)
        before = set(ours())
        first = next(iter(loader))
        assert set(ours()) == before
    dataset.set_epoch(1)
    assert same(first, next(iter(dataset)))


def test_the_loop_draws_from_its_generators_what_it_would_without_a_loader(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, decode={"cls": drawn}, transform=with_draws)

    def draws(loader: Any) -> list[Any]:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        return [drawn(None) for _ in loader]

    expected = draws(range(12))
    with ss.StreamLoader(dataset, threads=3) as loader:
        assert same(draws(loader), expected)


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Torch's operations take three threads each, as the user of this process wants it."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def in_new_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("threads", [0, 2])
def test_torch_takes_one_thread_in_ours_and_as_many_as_before_in_all_others(
    tars: str, threads: int
) -> None:
    seen: set[int] = set()

    def see(_: object) -> int:
        seen.add(torch.get_num_threads())
        return 0

    dataset = ss.ShardDataset(tars, batch_size=10, decode={"txt": Told(see), "cls": see})
    with ss.StreamLoader(dataset, threads=threads) as loader:
        for _ in loader:
            assert torch.get_num_threads() == 3
            assert in_new_thread(torch.get_num_threads) == 3
    assert seen == {1}
    with alone():
        assert torch.get_num_threads() == 1
        assert in_new_thread(torch.get_num_threads) == 3
    assert torch.get_num_threads() == 3


def test_after_a_break_the_next_epoch_comes_and_a_state_goes_on(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, shuffle=True)
    whole = ss.StreamLoader(dataset)
    epochs = [collect(whole) for _ in range(3)]
    with ss.StreamLoader(dataset, threads=2) as loader:
        for number, _ in enumerate(loader):
            if number == 3:
                break
        state = loader.state_dict()
        assert collect(loader) == epochs[1]
        assert collect(loader) == epochs[2]
        loader.load_state_dict(state)
        assert collect(loader) == epochs[0][4:]


@pytest.mark.parametrize("function", [None, drawn])
def test_a_loader_that_is_closed_or_dropped_leaves_no_thread(tars: str, function: Any) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10, decode={"cls": function} if function else None)
    loader = ss.StreamLoader(dataset, threads=3)
    iterator = iter(loader)
    next(iterator)
    assert len(ours()) == 3 + (function is None)
    loader.close()
    assert not ours()
    with pytest.raises(ss.errors.UsageError, match="closed in the middle"):
        next(iterator)
    assert collect(loader) == collect(ss.StreamLoader(dataset))
    assert ours()
    del loader, iterator
    assert not ours()


def test_a_loader_may_be_collected_by_one_of_its_threads(tars: str) -> None:
    is_garbage = threading.Event()
    first: list[str] = []
    next(iter(told(tars, first.append)))
    assert len(first) == 10
    # The samples behind that batch wait, so that there is work left when nobody holds the loader.
    dataset = told(tars, lambda key: key not in first and is_garbage.wait(10) and gc.collect())
    loader = ss.StreamLoader(dataset, threads=2)
    next(iter(loader))
    circle: list[Any] = [loader]
    circle.append(circle)
    gc.disable()
    try:
        del circle, loader
        is_garbage.set()
        assert wait_until(lambda: not ours(), 4.5), "a thread waits for itself"
    finally:
        gc.enable()


def test_a_thread_that_is_stuck_is_told_of_and_not_waited_for(
    tars: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads_module, "_JOIN_SECONDS", 0.1)
    release = threading.Event()
    dataset = told(tars, lambda key: key == "s0/0010" and release.wait(10))
    loader = ss.StreamLoader(dataset, threads=1)
    next(iter(loader))
    with caplog.at_level(logging.WARNING, "streamshard"):
        loader.close()
    assert "streamshard-thread-0 is stuck" in caplog.text
    release.set()
    assert wait_until(lambda: not ours(), 5)


def test_an_interrupt_ends_the_wait_and_the_threads(tars: str) -> None:
    dataset = told(tars, lambda key: time.sleep(0.2 * key.startswith("s2/")))
    loader = ss.StreamLoader(dataset, threads=2, prefetch=1)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # which may be to ignore it
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(loader)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, usual)
    assert not ours()


@pytest.mark.slow  # a process of its own, which imports torch
def test_a_process_ends_though_its_loader_was_never_closed(tars: str) -> None:
    code = (
        "import sys, streamshard as ss\n"
        "loader = ss.StreamLoader(ss.ShardDataset(sys.argv[1], batch_size=10), threads=3)\n"
        "print(len(next(iter(loader))['__key__']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tars], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "10\n", "")


def in_fork(function: Callable[[], bool]) -> bool:
    """What a function tells in a fork of this process; False where it is stuck."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if function() else 3)
        os._exit(4)
    status: list[int] = []

    def has_ended() -> bool:
        ended, how = os.waitpid(pid, os.WNOHANG)
        status.extend([how] * (ended == pid))
        return ended == pid

    if not wait_until(has_ended, 10):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return status == [0]


def test_a_process_forked_while_threads_run_begins_with_none(tars: str) -> None:
    dataset = ss.ShardDataset(tars, batch_size=10)
    expected = collect(ss.StreamLoader(dataset))
    with ss.StreamLoader(dataset, threads=3) as loader:
        iterator = iter(loader)
        next(iterator)

        def in_child() -> bool:
            with pytest.raises(ss.errors.UsageError, match="forked in the middle"):
                next(iterator)
            loader.close()  # these are not its threads
            return collect(ss.StreamLoader(dataset, threads=2)) == expected

        assert in_fork(in_child)
        assert [batch["__key__"] for batch in iterator] == expected[1:]
        # the threads have gone on into the next epoch, which the fork makes with its own
        assert in_fork(lambda: collect(loader) == expected)
        assert collect(loader) == expected


def test_workers_are_forked_while_threads_run(images: str) -> None:
    dataset = ss.ShardDataset(
        images, batch_size=8, shuffle=True, decode={"jpg": ss.RandomResizedCrop(16)}
    )
    expected = list(ss.StreamLoader(dataset))
    with ss.StreamLoader(dataset, threads=2, prefetch=1) as loader:
        iterator = iter(loader)
        next(iterator)
        with ss.StreamLoader(dataset, num_workers=2, threads=2) as other:
            assert same(list(map(dict, other)), list(map(dict, expected)))
        plain = DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=lambda batch: batch)
        assert same(list(map(dict, plain)), list(map(dict, expected)))
        assert same(list(map(dict, iterator)), list(map(dict, expected[1:])))


def test_a_turn_is_free_in_a_process_forked_while_it_was_held() -> None:
    turn, is_held, release = Turn(), threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            is_held.set()
            release.wait(10)

    def take() -> bool:
        with turn:
            return True

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(10)
    try:
        assert in_fork(take)
    finally:
        release.set()
        thread.join()


def opened_files() -> int:
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(path.endswith(".tar") for path in paths)


def test_threads_that_share_few_open_shards_read_what_is_there(tmp_path: Path) -> None:
    shards = Shards(make_tars(tmp_path, [9] * 24))
    shards._open.keep_at_most(2)
    chance, before = random.Random(0), opened_files()
    places = [(chance.randrange(24), chance.randrange(9)) for _ in range(1500)]
    most = [0]

    def read(place: tuple[int, int]) -> bytes | None:
        if chance.random() < 0.02:
            most[0] = max(most[0], opened_files() - before)
        return shards.read(*place, "txt")

    threads = Threads(8)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        found = list(threads.each(read, places))
    finally:
        sys.setswitchinterval(usual)
        threads.close()
    assert found == [f"s{shard}/{row:04d}".encode() for shard, row in places]
    assert most[0] <= 2 + 2 * 8  # open, and in the hands of a thread that reads or opens one
    assert opened_files() - before <= 2


def test_a_shard_that_many_threads_want_is_opened_by_one(tmp_path: Path) -> None:
    calls: list[int] = []

    def opened(number: int) -> Any:
        calls.append(number)
        time.sleep(0.01)
        return object()

    shards, threads = OpenShards(), Threads(8)
    found = list(threads.each(lambda number: shards.find(number, opened), [1, 17, 2] * 8))
    threads.close()
    assert sorted(calls) == [1, 2, 17]
    assert len({id(one) for one in found}) == 3


def test_what_nobody_waits_for_is_not_done() -> None:
    threads, done, go = Threads(1), list[int](), threading.Event()

    def do(number: int) -> None:
        go.wait(10)
        done.append(number)

    threads.each(do, range(50))  # and the results are dropped
    go.set()
    assert list(threads.each(str, [1])) == ["1"]
    assert len(done) <= 1
    assert list(threads.each(str, [])) == []
    threads.close()


def test_a_negative_number_of_threads_is_refused(tars: str) -> None:
    with pytest.raises(ss.errors.UsageError, match="threads=-1"):
        ss.StreamLoader(ss.ShardDataset(tars, batch_size=10), threads=-1)


def test_a_shard_that_another_thread_gives_up_meanwhile_is_whole_here() -> None:
    class GivenUp(OrderedDict[int, Any]):
        def get(self, number: int, default: Any = None) -> Any:
            return self.pop(number, default)

    shards, opened = OpenShards(), Mock()
    shards._open = GivenUp({3: opened})
    assert shards.find(3, Mock()) is opened
