"""Memory of batches that nobody holds any more is written again, and only that."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import streamshard as ss
from streamshard.stream.mapped import MappedMemory
from streamshard.stream.ring import DROPPED, FRESH, BlockMemory
from streamshard.stream.workers import WorkerPool

COUNT = 240
WAYS: dict[str, Callable[[Any], Any]] = {
    "batch": lambda batch: batch["npy"],
    "row": lambda batch: batch["npy"][1],
    "view": lambda batch: batch["npy"].view(torch.int32)[:, ::2],
    "numpy": lambda batch: batch["npy"].numpy(),
    "part of numpy": lambda batch: batch["npy"].numpy()[1:, 5:9],
    "detached": lambda batch: batch["npy"].detach().mT,
    "memory": lambda batch: memoryview(batch["npy"].numpy()),
    "storage": lambda batch: batch["npy"].untyped_storage(),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Samples of 40 KB that say over and over which one they are."""
    folder = tmp_path_factory.mktemp("dropped") / "data"
    with ss.ShardWriter(folder, shard_size="2MB") as writer:
        for number in range(COUNT):
            writer.write({"__key__": f"{number:03d}", "npy": np.full((100, 100), number, np.int32)})
    return str(folder)


def loader_of(url: str, **options: Any) -> ss.StreamLoader:
    dataset = ss.ShardDataset(url, batch_size=4, shuffle=True)
    return ss.StreamLoader(dataset, num_workers=2, prefetch=2, **options)


def as_bytes(held: Any) -> bytes:
    if isinstance(held, torch.UntypedStorage):
        return bytes(torch.empty(0, dtype=torch.uint8).set_(held).numpy())
    return held.tobytes() if isinstance(held, memoryview) else np.asarray(held).tobytes()


def memfds(loader: ss.StreamLoader) -> set[tuple[int, int]]:
    """The memory that workers hold, by worker and inode."""
    assert isinstance(loader._pool, WorkerPool)
    ours = {inode for _, inode in memfds_of(os.getpid())}  # of other tests, which a fork inherits
    pids = [handle.process.pid or 0 for handle in loader._pool._handles]
    found = set[tuple[int, int]]().union(*map(memfds_of, pids))
    return {(pid, inode) for pid, inode in found if inode not in ours}


def memfds_of(pid: int) -> set[tuple[int, int]]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        place = f"/proc/{pid}/fd/{name}"
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if "memfd:streamshard" in os.readlink(place):
                found.add((pid, os.stat(place).st_ino))
    return found


@pytest.mark.parametrize("epochs", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_what_is_held_in_any_way_never_changes(url: str, epochs: int) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    kept: list[tuple[str, Any, bytes]] = []
    with loader_of(url) as loader:
        for _ in range(epochs):
            for batch in loader:
                numbers = list(map(int, batch["__key__"]))
                assert all((row == n).all() for row, n in zip(batch["npy"], numbers, strict=True))
                if chance.random() < 0.3:
                    way = chance.choice(list(WAYS))
                    held = WAYS[way](batch)
                    kept.append((way, held, as_bytes(held)))
                if chance.random() < 0.2 and kept:
                    kept.pop(chance.randrange(len(kept)))
                time.sleep(chance.choice([0, 0, 0.002]))
    for way, held, before in kept:
        assert as_bytes(held) == before, (seed, way)


def test_memory_that_was_said_to_be_dropped_too_early_shows_as_another_batch(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the test above looks for can happen, and it would see it."""

    def watch(memory: MappedMemory, array: Any, number: int) -> None:
        memory._dropped.append(number - 1)

    monkeypatch.setattr(MappedMemory, "_watch", watch)
    with loader_of(url) as loader:
        kept = [(batch["npy"], batch["npy"].clone()) for batch in loader]
    assert sum(not torch.equal(now, then) for now, then in kept) > 3


def test_a_loop_that_keeps_nothing_is_given_little_memory(url: str) -> None:
    with loader_of(url) as loader:
        used = set[tuple[int, int]]()
        for _ in range(3):
            for _ in loader:
                used |= memfds(loader)
        assert len(used) <= 2 * 6, "of 180 batches"
        kept = list(loader)
        assert len(memfds(loader)) <= 2 * 6, "of those that are kept few are remembered"
        assert len(kept) == 60


def test_a_forked_process_keeps_what_it_got(url: str) -> None:
    with loader_of(url) as loader:
        iterator = iter(loader)
        batch = next(iterator)
        before = batch["npy"].clone()

        is_same = in_forked_process(partial(stays, batch, before))
        del batch
        gc.collect()
        for _ in iterator:
            pass
        assert is_same()


def stays(batch: Any, before: torch.Tensor) -> bool:
    time.sleep(0.3)  # while the other process drops it and goes on
    return torch.equal(batch["npy"], before)


def in_forked_process(ask: Callable[[], bool]) -> Callable[[], bool]:
    """Fork at once; what is returned waits for the answer."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, b"1" if ask() else b"0")
        finally:
            os._exit(0)
    os.close(writing)

    def answer() -> bool:
        with os.fdopen(reading, "rb") as file:
            said = file.read()
        os.waitpid(pid, 0)
        return said == b"1"

    return answer


class TestBlockMemory:
    def make(self, memory: BlockMemory, value: int, nbytes: int = 100_000) -> Any:
        memory.allocate(nbytes)[:] = value
        return memory.hand_over(b"layout")

    def test_the_last_that_was_dropped_is_written_again(self) -> None:
        memory = BlockMemory(3, reuse=False)
        first, second = self.make(memory, 1), self.make(memory, 2)
        assert first.ring == second.ring == FRESH
        for place in (first, second):
            memory.take_back(*place.own)
        for place in (first, second):
            memory.take_back(DROPPED, place.number)
        again = self.make(memory, 3, 110_000)
        assert again.descriptor == second.descriptor
        assert again.number not in (first.number, second.number)
        assert os.pread(first.descriptor, 3, 0) == b"\1\1\1"
        assert os.pread(again.descriptor, again.size, 0) == b"\3" * 110_000 + b"layout"

    def test_a_block_is_not_written_again_before_it_is_dropped(self) -> None:
        memory = BlockMemory(2, reuse=False)
        first = self.make(memory, 1)
        memory.take_back(*first.own)
        for value in range(2, 5):
            place = self.make(memory, value)
            assert place.descriptor != first.descriptor
            memory.take_back(*place.own)
        assert os.pread(first.descriptor, 3, 0) == b"\1\1\1"

    def test_what_was_forgotten_is_nobodys_when_it_is_dropped(self) -> None:
        """Its descriptor may be that of another block by now."""
        memory = BlockMemory(1, reuse=False)
        places = []
        for value in range(8):
            places.append(self.make(memory, value))
            memory.take_back(*places[-1].own)
        open_files = len(os.listdir("/proc/self/fd"))
        for place in places[:5]:
            memory.take_back(DROPPED, place.number)
        again = self.make(memory, 9)
        assert again.descriptor not in [place.descriptor for place in places[5:]]
        assert len(os.listdir("/proc/self/fd")) <= open_files + 2

    def test_memory_far_too_large_is_let_go(self) -> None:
        memory = BlockMemory(2, reuse=False)
        large = self.make(memory, 1, 1_000_000)
        memory.take_back(*large.own)
        memory.take_back(DROPPED, large.number)
        small = self.make(memory, 2, 1_000)
        assert os.fstat(small.descriptor).st_size < 10_000
