"""One rank of a training that will be killed.

All ranks of a run meet in every step. Each logs what it received to FOLDER/RUN-RANK.log before they
meet; rank 0 saves the state to FOLDER/state.json after. It has a session of its own, by which its
workers are found.
"""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import streamshard as ss

LIMIT_SECONDS = 60
SECONDS_PER_SAMPLE = 0.0015  # so that an epoch takes as long on any topology


def train(loader: ss.StreamLoader, log: Path, state_file: Path) -> None:
    """The rest of epoch 0."""
    with log.open("w") as out:
        for batch in loader:
            state = loader.state_dict()
            out.write(json.dumps([state["epoch"], state["position"], batch["__key__"]]) + "\n")
            out.flush()
            met = torch.ones(1)
            dist.all_reduce(met)
            assert int(met) == dist.get_world_size()
            if dist.get_rank() == 0:
                new = state_file.with_suffix(".new")
                new.write_text(json.dumps(state))
                new.replace(state_file)
            time.sleep(SECONDS_PER_SAMPLE * len(batch["__key__"]) * dist.get_world_size())


def main(
    url: str, folder: Path, run: int, *, rank: int, size: int, workers: int, batch_size: int
) -> None:
    os.setsid()
    # Whatever becomes of the test, this process ends, and its workers with it.
    signal.alarm(LIMIT_SECONDS)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{run}.store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=20),
    )
    dataset = ss.ShardDataset(
        url, batch_size=batch_size, shuffle=True, tail="exact", lanes=2, grain=4, window=100
    )
    state_file = folder / "state.json"
    with ss.StreamLoader(dataset, num_workers=workers, prefetch=2) as loader:
        if state_file.exists():
            loader.load_state_dict(json.loads(state_file.read_text()))
        if loader.epoch == 0:
            train(loader, folder / f"{run}-{dist.get_rank()}.log", state_file)
    dist.barrier()
    dist.destroy_process_group()
