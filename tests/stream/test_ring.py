"""The ring: no batch changes under the hands that hold it, and nothing of it is left."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.data import Data

import streamshard as ss
from streamshard.stream import device, workers
from streamshard.stream.builder import BlockBuilder
from streamshard.stream.mapped import MappedMemory
from streamshard.stream.ring import FRESH, BlockMemory
from streamshard.stream.workers import WorkerPool
from tests.stream.data import collect
from tests.stream.late import LateSide
from tests.stream.test_workers import gone, pids, wait_until

COUNT = 120


def write(folder: Path, size_of: Callable[[int], int]) -> str:
    """Samples whose array says over and over which one it is, as its key and its class do."""
    with ss.ShardWriter(folder, shard_size="1MB") as writer:
        for number in range(COUNT):
            array = np.full(size_of(number), number)
            writer.write({"__key__": f"{number:03d}", "npy": array, "cls": number})
    return str(folder)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("even") / "data", lambda number: 1000)


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """From 8 bytes to 400 KB a sample: the first ring can't be the last."""
    return write(
        tmp_path_factory.mktemp("growing") / "data", lambda number: int(1.1**number) // 2 + 1
    )


def is_whole(batch: Any) -> bool:
    """Whether everything in a batch is of the samples that it names."""
    numbers = list(map(int, batch["__key__"]))
    arrays = zip(batch["npy"], numbers, strict=True)
    return batch["cls"].tolist() == numbers and all(bool((a == n).all()) for a, n in arrays)


def rings(loader: ss.StreamLoader) -> list[int]:
    """Which ring of each worker the trainer has mapped last, 0 for none."""
    assert isinstance(loader._pool, WorkerPool)
    return [handle.memory._number for handle in loader._pool._handles]


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_batches_are_those_without_reuse(even: str, start_method: str) -> None:
    dataset = ss.ShardDataset(even, batch_size=5, shuffle=True)
    reference = ss.StreamLoader(dataset)
    expected = [collect(reference) for _ in range(3)]
    with ss.StreamLoader(
        dataset, num_workers=2, prefetch=2, reuse=True, start_method=start_method
    ) as loader:
        addresses = set()
        for epoch in expected:
            for batch, keys in zip(loader, epoch, strict=True):
                assert is_whole(batch)
                assert batch["__key__"] == keys
                addresses.add(batch["npy"].data_ptr())
        assert rings(loader) == [1, 1]
    assert len(addresses) <= 6, "two rings of three slots"


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("consumer_seconds", [0, 0.004])
@pytest.mark.parametrize("sample_seconds", [0, 0.0005])
def test_a_batch_is_whole_until_the_next_whoever_is_faster(
    even: str, prefetch: int, consumer_seconds: float, sample_seconds: float
) -> None:
    def decode(array: Any) -> Any:
        time.sleep(sample_seconds)
        return array

    dataset = ss.ShardDataset(even, batch_size=4, decode={"npy": decode})
    with ss.StreamLoader(dataset, num_workers=2, prefetch=prefetch, reuse=True) as loader:
        for batch in loader:
            time.sleep(consumer_seconds)
            assert is_whole(batch)


def test_a_slot_given_back_too_early_shows_as_a_broken_batch(
    even: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the tests beside this one look for can happen, and they would see it."""
    receive = WorkerPool.receive

    def receive_and_give_back(pool: WorkerPool, step: int) -> Any:
        block = receive(pool, step)
        pool.give_back()
        return block

    monkeypatch.setattr(WorkerPool, "receive", receive_and_give_back)
    dataset = ss.ShardDataset(even, batch_size=4)
    broken = 0
    with ss.StreamLoader(dataset, num_workers=2, prefetch=1, reuse=True) as loader:
        for batch in loader:
            time.sleep(0.02)
            broken += not is_whole(batch)
    assert broken > 3


def test_batches_that_outgrow_their_slots_are_whole_and_get_larger_rings(growing: str) -> None:
    dataset = ss.ShardDataset(growing, batch_size=2)
    with ss.StreamLoader(dataset, num_workers=2, prefetch=2, reuse=True) as loader:
        for _ in range(3):
            assert all(map(is_whole, loader))
        made = rings(loader)
        assert all(1 < number < 12 for number in made)
        assert all(map(is_whole, loader))
        assert rings(loader) == made, "the last rings take every batch"


def test_the_fourth_block_that_outgrows_its_slot_makes_the_ring_anew() -> None:
    memory = BlockMemory(3, reuse=True)
    descriptors = len(os.listdir("/proc/self/fd"))

    def hand_over(nbytes: int) -> Any:
        memory.allocate(nbytes)[:] = 1
        return memory.hand_over(b"layout")

    held = hand_over(100_000)
    assert (held.ring, held.nbytes, held.layout_bytes) == (1, 100_000, 6)
    for _ in range(3):
        fresh = hand_over(1_000_000)
        assert fresh.ring == FRESH
        memory.take_back(*fresh.own)
    second, third = hand_over(1_000_000), hand_over(1_200_000)
    assert second.ring == third.ring == 2
    full = not memory.has_room
    assert full, "the block in the old ring counts until it is back"
    assert len(os.listdir("/proc/self/fd")) == descriptors + 2
    memory.take_back(*held.own)
    assert memory.has_room
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1, "the old ring was closed"


def test_a_layout_that_does_not_fit_behind_its_block_moves_both() -> None:
    memory = BlockMemory(2, reuse=True)
    memory.allocate(100)[:] = 7
    place = memory.hand_over(b"x" * 1_000_000)
    assert (place.ring, place.size) == (FRESH, 1_000_100)
    assert os.pread(place.descriptor, 101, 0) == b"\7" * 100 + b"x"
    memory.take_back(*place.own)


def test_a_block_that_was_never_handed_over_costs_nothing() -> None:
    for reuse in (False, True):
        memory = BlockMemory(1, reuse=reuse)
        memory.allocate(1000)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            memory.allocate(1000)
        assert len(os.listdir("/proc/self/fd")) == before
        assert memory.has_room
        memory.take_back(*memory.hand_over(b"").own)


def test_a_batch_outlives_the_break_the_loop_the_loader_and_its_worker(even: str) -> None:
    dataset = ss.ShardDataset(even, batch_size=4)
    with ss.StreamLoader(dataset, num_workers=2, prefetch=1, reuse=True) as loader:
        for batch in loader:  # noqa: B007
            break
        time.sleep(0.1)
        assert is_whole(batch), "after a break"
        for batch in loader:  # noqa: B007
            pass
        time.sleep(0.1)
        assert is_whole(batch), "after the last of an epoch"
        batch = next(iter(loader))
        for pid in pids(loader):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        assert is_whole(batch), "after its worker ended"
        batch = next(iter(loader))
    assert is_whole(batch), "after close"


def test_what_is_copied_of_a_batch_is_its_owners(even: str) -> None:
    dataset = ss.ShardDataset(even, batch_size=4)
    with ss.StreamLoader(dataset, num_workers=1, prefetch=1, reuse=True) as loader:
        kept: list[Any] = []
        for number, batch in enumerate(loader):
            if number % 10 == 0:
                assert len(pickle.dumps(batch)) < 60_000, "the block, and not its ring"
                kept += [
                    batch.clone(), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch)),
                    {name: copy.copy(batch[name]) for name in ("__key__", "cls")}
                    | {"npy": batch["npy"].clone(), "cls": copy.deepcopy(batch["cls"])},
                ]  # fmt: skip
    assert len(kept) == 12
    assert all(map(is_whole, kept))
    assert all(is_whole(pickle.loads(pickle.dumps(batch))) for batch in kept)


def graphs(count: int) -> list[Data]:
    return [
        Data(
            x=torch.full((nodes, 3), float(nodes)),
            edge_index=torch.randint(0, nodes, (2, 2 * nodes)),
        )
        for nodes in range(2, count + 2)
    ]


COPIES: dict[str, Callable[[GraphBatch], GraphBatch]] = {
    "clone": lambda batch: batch.clone(),
    "deepcopy": copy.deepcopy,
    "to": lambda batch: batch.to("meta"),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_graph_batch_is_taken_apart_as_it_was(tmp_path: Path, how: str) -> None:
    """PyG leaves on the CPU, and uncopied, the tables by which it takes a batch apart."""
    there = graphs(60)
    ss.pack_graphs(there, tmp_path / "packed", shuffle=False)
    dataset = ss.ShardDataset(tmp_path / "packed", batch_size=5, parts="graph")
    with ss.StreamLoader(dataset, num_workers=1, prefetch=1, reuse=True) as loader:
        kept = [COPIES[how](batch) for batch in loader]
    again = [graph for batch in kept for graph in batch.to_data_list()]
    assert [graph.x.shape for graph in again] == [graph.x.shape for graph in there]
    if again[0].x.device.type == "cpu":
        for graph, other in zip(again, there, strict=True):
            assert torch.equal(graph.x, other.x)
            assert torch.equal(graph.edge_index, other.edge_index)


def test_batches_on_another_device_keep_what_stays_on_the_host(even: str) -> None:
    dataset = ss.ShardDataset(even, batch_size=4)
    expected = collect(ss.StreamLoader(dataset))
    with ss.StreamLoader(dataset, num_workers=2, prefetch=1, device="meta") as loader:
        kept = list(loader)
        assert rings(loader) == [1, 1]
    assert all(batch["npy"].device.type == "meta" for batch in kept)
    assert collect(kept) == expected
    assert collect(pickle.loads(pickle.dumps(kept))) == expected


def test_batches_that_outgrow_their_slots_arrive_whole_though_copies_are_late(
    growing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies beside the ring is given back in its turn, or all after it were too early."""
    side = LateSide()
    monkeypatch.setitem(device._SIDES, "meta", lambda _: side)
    dataset = ss.ShardDataset(growing, batch_size=2)
    with ss.StreamLoader(dataset, num_workers=1, prefetch=2, device="meta") as loader:
        for _ in range(2):
            for batch in loader:
                side.used()
                assert is_whole(batch)
                time.sleep(0.002)
    assert side.torn == 0


@pytest.mark.parametrize("where", ["here", "meta", "copied ahead"])
def test_iterators_left_behind_loads_and_closes_lose_no_slot(
    even: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty random turns with few slots to lose: lost ones would stop the stream."""
    if where == "copied ahead":
        monkeypatch.setitem(device._SIDES, "meta", lambda _: LateSide())
    dataset = ss.ShardDataset(even, batch_size=4, shuffle=True)
    expected = collect(ss.StreamLoader(dataset))
    chance = random.Random(5)
    left_behind: list[Iterator[Any]] = []
    options: dict[str, Any] = {"reuse": True} if where == "here" else {"device": "meta"}
    with ss.StreamLoader(dataset, num_workers=2, prefetch=1, **options) as loader:
        beginning = loader.state_dict()
        for _ in range(20):
            loader.load_state_dict(beginning)
            iterator = iter(loader)
            left_behind.append(iterator)
            taken = [next(iterator)["__key__"] for _ in range(chance.randint(1, 9))]
            assert taken == expected[: len(taken)]
            if chance.random() < 0.2:
                loader.close()
            elif chance.random() < 0.3:
                left_behind.clear()
        loader.load_state_dict(beginning)
        assert collect(loader) == expected
        assert isinstance(loader._pool, WorkerPool)
        assert len(loader._pool._lent) == (where == "here")


def held(pid: int | str) -> tuple[int, int]:
    """Descriptors and mappings of a process."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return len(os.listdir(f"/proc/{pid}/fd")), maps.count("memfd:streamshard")


@pytest.mark.parametrize("device", [None, "meta"])
def test_fifty_epochs_hold_what_the_second_held(even: str, device: Any) -> None:
    dataset = ss.ShardDataset(even, batch_size=8, shuffle=True)
    gc.collect()  # what tests before left would go at some moment of this one
    before = held("self")[1]  # a forked worker has them too
    with ss.StreamLoader(dataset, num_workers=2, prefetch=2, reuse=True, device=device) as loader:
        seen = []
        for epoch in range(50):
            for number, _ in enumerate(loader):
                if epoch % 5 == 4 and number == 6:
                    break
            if epoch % 5 == 3:  # at rest: what the workers made ahead waits
                time.sleep(0.05)
                seen.append([held("self"), *map(held, pids(loader))])
    assert [maps - before for _, maps in seen[0]] == [2, 1, 1]
    assert all(each == seen[0] for each in seen)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_killed_at_random_leave_no_gap_and_no_broken_batch(
    growing: str, start_method: str
) -> None:
    kills = 5 if start_method == "fork" else 2  # one that is spawned takes seconds to start
    dataset = ss.ShardDataset(growing, batch_size=2, shuffle=True)
    reference = ss.StreamLoader(dataset)
    expected = [collect(reference) for _ in range(4)]
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    ended: list[int] = []
    with ss.StreamLoader(
        dataset, num_workers=2, prefetch=2, reuse=True, restarts=kills, start_method=start_method
    ) as loader:
        done = threading.Event()

        def kill_now_and_then() -> None:
            while len(ended) < kills and not done.wait(chance.uniform(0.02, 0.3)):
                with contextlib.suppress(ValueError, ProcessLookupError):
                    victim = chance.choice(pids(loader))
                    if victim not in ended:
                        os.kill(victim, signal.SIGKILL)
                        ended.append(victim)

        iterator = iter(loader)
        seen = [[next(iterator)["__key__"]]]
        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        try:
            for epoch in range(4):
                for batch in iterator if epoch == 0 else loader:
                    time.sleep(0.003)
                    assert is_whole(batch), f"seed {seed}"
                    seen[-1].append(batch["__key__"])
                seen.append([])
        finally:
            done.set()
            killer.join()
    assert seen[:-1] == expected, f"seed {seed}"
    assert ended, "nobody was killed"
    assert wait_until(lambda: all(map(gone, ended)), 5.0)


TRAINER = """
import sys, time
import streamshard as ss
loader = ss.StreamLoader(
    ss.ShardDataset(sys.argv[1], batch_size=4), num_workers=2, reuse=sys.argv[2] == "ring"
)
iterator = iter(loader)
print(*[next(iterator)["cls"].sum().item() for _ in range(30)], flush=True)
print(*[handle.process.pid for handle in loader._pool._handles], flush=True)
time.sleep(600 if sys.argv[3] == "stay" else 0)
"""


def trainer(url: str, *options: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", TRAINER, url, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip


def test_a_killed_trainer_leaves_nothing_in_dev_shm(even: str) -> None:
    before = set(os.listdir("/dev/shm"))
    process = trainer(even, "ring", "stay")
    assert process.stdout
    process.stdout.readline()
    ended = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    assert len(ended) == 2
    assert wait_until(lambda: all(map(gone, ended)), 5.0)
    named = {name for name in set(os.listdir("/dev/shm")) - before if "streamshard" in name}
    assert not named


def may_mount() -> bool:
    tool = shutil.which("unshare")
    return bool(tool) and not subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"],
        capture_output=True, check=False,
    ).returncode  # fmt: skip


@pytest.mark.parametrize("how", ["ring", "fresh"])
def test_blocks_do_not_count_against_dev_shm(even: str, how: str) -> None:
    """Blocks of 32 KB, at least two for each of two workers, and no room for one in /dev/shm."""
    if not may_mount():
        pytest.skip("needs a mount namespace")
    mount = 'mount -t tmpfs -o size=8k tmpfs /dev/shm && exec "$0" "$@"'
    process = trainer(even, how, "go", before=("unshare", "-Urm", "sh", "-c", mount))
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert sum(map(int, out.splitlines()[0].split())) == sum(range(COUNT))


def test_a_ring_that_memory_will_not_hold_is_refused_before_it_is_used(
    even: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "memory_left", lambda: 500_000)
    dataset = ss.ShardDataset(even, batch_size=4)
    with (
        ss.StreamLoader(dataset, num_workers=2, prefetch=4, reuse=True) as loader,
        pytest.raises(ss.errors.UsageError, match=r"2 workers with 5 batches of .* 500,000 were"),
    ):
        next(iter(loader))
    with ss.StreamLoader(dataset, num_workers=2, prefetch=1, reuse=True) as loader:
        assert all(map(is_whole, loader))


def send_sums(batches: Any, sums: Any) -> None:
    for _ in range(2):
        sums.put(int(batches.get()["npy"].sum()))


@pytest.mark.parametrize("reuse", [False, True])
def test_a_batch_may_be_sent_to_another_process(even: str, reuse: bool) -> None:
    context: Any = torch.multiprocessing.get_context("fork")
    batches, sums = context.Queue(), context.Queue()
    child = context.Process(target=send_sums, args=(batches, sums))
    child.start()
    with ss.StreamLoader(ss.ShardDataset(even, batch_size=4), num_workers=1, reuse=reuse) as loader:
        iterator = iter(loader)
        for _ in range(2):
            batch = next(iterator)
            expected = int(batch["npy"].sum())
            batches.put(batch)
            assert sums.get(timeout=60) == expected
    child.join()


@pytest.mark.parametrize("url", ["even", "growing"])
def test_batches_are_for_keeps_without_reuse(url: str, request: pytest.FixtureRequest) -> None:
    dataset = ss.ShardDataset(request.getfixturevalue(url), batch_size=4, shuffle=True)
    with ss.StreamLoader(dataset, num_workers=2, prefetch=1, restarts=1) as loader:
        kept = [batch for _ in range(2) for batch in loader]
        os.kill(pids(loader)[0], signal.SIGKILL)
        kept += list(loader)
    assert len(kept) == 3 * COUNT // 4
    assert all(map(is_whole, kept))
    assert len({batch.block.memory.data_ptr() for batch in kept}) == len(kept)


class Cudart:
    """Stands for CUDA's runtime: which memory is locked."""

    class cudaError:
        success = 0

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if self.answer == 0:
            self.locked[address] = nbytes
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


@pytest.mark.parametrize("answer", [0, 801])
def test_the_pages_of_a_ring_are_locked_as_long_as_it_is_mapped(
    monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    cudart = Cudart(answer)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch, "zeros", Mock(side_effect=RuntimeError("what was left unread")))
    builder = BlockBuilder()
    builder.tensor("cls", np.arange(1000))
    memory = BlockMemory(2, reuse=True)
    block = builder.finish(memory.allocate, None)
    place = memory.hand_over(pickle.dumps(block.layout))
    mapped = MappedMemory(os.getpid(), torch.device("cuda"))
    seen = mapped.block_at(place)
    assert list(cudart.locked.values()) == ([place.size] if answer == 0 else [])
    assert mapped.block_at(place).memory.data_ptr() == seen.memory.data_ptr()
    del mapped
    assert len(cudart.locked) == (answer == 0), "a block is still lent"
    assert torch.equal(seen.view(0), torch.arange(1000))
    del seen
    assert not cudart.locked
