"""Real kills at random moments: of workers under a living trainer, and of the trainer itself."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import streamshard as ss
from tests.stream.data import collect, make_tars
from tests.stream.test_workers import gone, pids, wait_until

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


TRAINER = """
import json, os, sys, time
import streamshard as ss
url, log, state_file, workers, batch = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
dataset = ss.ShardDataset(
    url, batch_size=batch, shuffle=True, tail="exact", lanes=2, grain=4, window=100
)
with ss.StreamLoader(dataset, num_workers=workers, prefetch=2) as loader:
    if os.path.exists(state_file):
        loader.load_state_dict(json.load(open(state_file)))
    if loader.epoch == 0:
        with open(log, "a") as out:
            for batch in loader:
                state = loader.state_dict()
                # What was trained on, then the checkpoint, each in one write.
                out.write(json.dumps([state["epoch"], state["position"], batch["__key__"]]) + "\\n")
                out.flush()
                with open(state_file + ".new", "w") as new:
                    json.dump(state, new)
                os.replace(state_file + ".new", state_file)
                time.sleep(0.01)
"""


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 50))]
)
def test_a_trainer_killed_at_random_goes_on_from_its_last_state(
    tars: str, tmp_path: Path, seed: int
) -> None:
    """Another number of workers and another batch size after every kill."""
    dataset = ss.ShardDataset(
        tars, batch_size=7, shuffle=True, tail="exact", lanes=2, grain=4, window=100
    )
    expected = [key for keys in collect(ss.StreamLoader(dataset)) for key in keys]
    chance = random.Random(seed)
    log, state = tmp_path / "log", tmp_path / "state.json"
    received: list[str] = []
    kills = 0
    while received != expected:
        workers, batch = chance.choice([0, 1, 3]), chance.choice([4, 7, 10])
        trainer = subprocess.Popen(
            [sys.executable, "-c", TRAINER, tars, log, state, str(workers), str(batch)],
            env={**os.environ, "PYTHONPATH": os.getcwd()}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for_a_line(log, trainer)
        time.sleep(chance.uniform(0, 0.4))
        trainer.kill()
        kills += trainer.wait() == -signal.SIGKILL
        if not state.exists():
            log.unlink(missing_ok=True)  # killed before its first checkpoint
            continue
        # Only what the last saved state counts was trained on; a step after it is done again.
        lines = [json.loads(line) for line in log.read_text().splitlines() if line[-1:] == "]"]
        saved = json.loads(state.read_text())
        kept = [line for line in lines if line[:2] <= [saved["epoch"], saved["position"]]]
        received = [key for _, _, keys in kept for key in keys]
        log.write_text("".join(json.dumps(line) + "\n" for line in kept))
        assert received == expected[: len(received)]
        assert saved["epoch"] == 0 or received == expected
    assert kills, "it ended before it could be killed"


def wait_for_a_line(log: Path, trainer: subprocess.Popen[bytes]) -> None:
    """Until the trainer has written something, or ended."""
    before = log.stat().st_size if log.exists() else 0
    wait_until(
        lambda: (log.exists() and log.stat().st_size > before) or trainer.poll() is not None, 60
    )
