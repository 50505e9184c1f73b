"""Real kills at random moments: of workers under a living trainer, and of whole trainings."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import streamshard as ss
from tests.stream import killed_job
from tests.stream.data import collect, make_tars
from tests.stream.test_workers import gone, pids, wait_until

FORK = multiprocessing.get_context("fork")
COUNTS = (200, 150, 250)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tars(tmp_path_factory.mktemp("tars"), COUNTS)


def slowly(text: str) -> str:
    """Long enough that kills fall into reading, decoding and sending alike."""
    time.sleep(0.0005)
    return text


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_workers_killed_at_random_moments_leave_no_gap(
    tars: str, start_method: str, kills: int
) -> None:
    dataset = ss.ShardDataset(tars, batch_size=3, shuffle=True, decode={"txt": slowly})
    reference = ss.StreamLoader(dataset)
    expected = [collect(reference) for _ in range(2)]
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    ended: list[int] = []

    with ss.StreamLoader(
        dataset, num_workers=2, prefetch=3, restarts=kills, start_method=start_method
    ) as loader:
        done = threading.Event()

        def kill_now_and_then() -> None:
            while len(ended) < kills and not done.wait(chance.uniform(0.02, 0.15)):
                # Between two looks the loader may have replaced the one that was killed before.
                with contextlib.suppress(ValueError, ProcessLookupError):
                    victim = chance.choice(pids(loader))
                    if victim not in ended:
                        os.kill(victim, signal.SIGKILL)
                        ended.append(victim)

        iterator = iter(loader)
        first = next(iterator)["__key__"]
        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        try:
            seen = [[first, *collect(iterator)], collect(loader)]
        finally:
            done.set()
            killer.join()
        assert seen == expected, f"seed {seed}"
    assert ended, "nobody was killed"
    assert wait_until(lambda: all(map(gone, ended)), 5.0)


class Link(NamedTuple):
    """The topology of one run of a chain."""

    ranks: int
    workers: int
    batch_size: int


class Ranks:
    """The processes of one run; when the block is left, neither they nor their workers live."""

    def __init__(self, url: str, folder: Path, run: int, link: Link) -> None:
        self.logs = [folder / f"{run}-{rank}.log" for rank in range(link.ranks)]
        self.processes = [
            FORK.Process(
                target=killed_job.main,
                args=(url, folder, run),
                kwargs={"rank": rank, "size": link.ranks, "workers": link.workers}
                | {"batch_size": link.batch_size},
            )
            for rank in range(link.ranks)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_for_a_step(self) -> None:
        """Until rank 0 has logged one, or ended because nothing was left to do."""
        log, first = self.logs[0], self.processes[0]
        assert wait_until(
            lambda: (log.exists() and log.stat().st_size > 0) or first.exitcode is not None, 60
        ), "no step in a minute"
        statuses = [process.exitcode for process in self.processes]
        assert all(status in (None, 0) for status in statuses), f"{statuses}; see standard error"

    def kill(self, ranks: Sequence[int]) -> int:
        """Kill some; how many of them were alive."""
        killed = [self.processes[rank] for rank in ranks]
        for process in killed:
            process.kill()
        for process in killed:
            process.join()
        return sum(process.exitcode == -signal.SIGKILL for process in killed)

    def living(self) -> list[int]:
        """What lives in the ranks' sessions: they and their workers."""
        sessions = {str(process.pid) for process in self.processes}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[3] in sessions and fields[0] != "Z":
                    found.append(int(folder.name))
        return found

    def received(self, saved: dict[str, Any]) -> list[str]:
        """What the ranks logged of the steps that a state counts, in the order of the sequence."""
        ranks = []
        for log in self.logs:
            lines = log.read_text().splitlines() if log.exists() else []
            steps = [json.loads(line) for line in lines if line.endswith("]]")]
            counted = [saved["epoch"], saved["position"]]
            ranks.append([keys for *place, keys in steps if place <= counted])
        return [key for step in zip(*ranks, strict=True) for keys in step for key in keys]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 50))]
)
def test_ranks_killed_at_random_go_on_from_the_last_state_on_another_topology(
    tars: str, tmp_path: Path, seed: int
) -> None:
    """Another number of ranks, of workers and another batch size after every kill."""
    dataset = ss.ShardDataset(
        tars, batch_size=7, shuffle=True, tail="exact", lanes=2, grain=4, window=100
    )
    expected = [key for keys in collect(ss.StreamLoader(dataset)) for key in keys]
    chance = random.Random(seed)
    state = tmp_path / "state.json"
    received: list[str] = []
    kills, link = 0, Link(0, 0, 0)
    for run in itertools.count():
        link = another(link, chance)
        with Ranks(tars, tmp_path, run, link) as ranks:
            ranks.wait_for_a_step()
            time.sleep(chance.uniform(0, 0.5))  # of about 0.9 seconds
            order = chance.sample(range(link.ranks), link.ranks)
            if chance.random() < 0.5:  # one first; the others find it gone, or are killed before
                kills += ranks.kill(order[:1])
                time.sleep(chance.uniform(0, 0.1))
            kills += ranks.kill(order)
            assert wait_until(lambda: not ranks.living(), 10), "a worker outlived its rank"
        if not state.exists():
            continue  # killed before the first checkpoint
        saved = json.loads(state.read_text())
        received += ranks.received(saved)
        assert received == expected[: len(received)], f"a duplicate or a gap after {link}"
        if saved["epoch"] == 1:
            break
        assert len(received) == saved["position"]
    assert received == expected
    assert kills, "it ended before it could be killed"


def another(link: Link, chance: random.Random) -> Link:
    """A topology that differs in everything."""
    return Link(
        chance.choice([ranks for ranks in (1, 2, 3) if ranks != link.ranks]),
        chance.choice([workers for workers in (0, 1, 3) if workers != link.workers]),
        chance.choice([size for size in (4, 7, 10) if size != link.batch_size]),
    )
