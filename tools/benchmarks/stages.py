"""Where a worker's time goes in an epoch of images, stage by stage.

What a stage is made of is wrapped with a clock before the workers are forked. A stage's time is
its own, without that of the stages inside it: processor time, which a busy machine changes little.
What the clocks themselves take is measured, and taken off Python's.
"""

import mmap
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

import streamshard as ss
from streamshard.codec import framing, header, picture
from streamshard.plan import order
from streamshard.shard import tar
from streamshard.store import local
from streamshard.stream import reader, ring, schedule, worker

PYTHON = "Python around all of it"
TRAINER, BUSY = "the trainer", "processor / wall time of a worker"
# A stage, and what is called in it. A name that is not there any more is an error: its time would
# be taken for Python's.
STAGES: dict[str, list[tuple[Any, str]]] = {
    "the plan: which rows": [(order.Order, "places"), (schedule.Schedule, "_located")],
    "pread": [(local.LocalFile, "read")],
    "the tar's header compared": [(tar, "check_header")],
    "crc32": [(reader, "crc32")],
    "the JPEG's header": [(header.Headers, "of")],
    "its part of the JPEG cut out": [(picture, "cut")],
    "JPEG decoded": [(simplejpeg, "decode_jpeg")],
    "crop resized": [(torch.nn.functional, "interpolate"), (framing, "_resize_into")],
    "copied into its row": [(torch.Tensor, "copy_")],
    "memory for the block": [(ring.BlockMemory, "allocate")],
    "handed over": [(ring.BlockMemory, "hand_over"), (worker.Connection, "send")],
    "woken for what is given back": [(worker._Worker, "_listen")],
}
_ROWS = 64  # most workers, and the trainer's row behind them


class Clocks:
    """Seconds by worker and stage, in memory that all processes share."""

    def __init__(self) -> None:
        shape = (_ROWS + 1, len(STAGES) + 1)  # the last column counts calls
        self.seconds = np.frombuffer(mmap.mmap(-1, 8 * shape[0] * shape[1])).reshape(shape)
        self._row = _ROWS
        self._inside = threading.local()  # seconds of the stages inside the current one
        for number, places in enumerate(STAGES.values()):
            for owner, name in places:
                setattr(owner, name, self._timed(number, getattr(owner, name)))
        run = worker._Worker.run

        def run_in_a_row(each: Any) -> None:
            self._row = each._job.number
            run(each)

        worker._Worker.run = run_in_a_row

    def _timed(self, number: int, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with a clock."""

        def run(*args: Any, **more: Any) -> Any:
            outside, self._inside.seconds = getattr(self._inside, "seconds", 0.0), 0.0
            begin = time.thread_time()
            try:
                return function(*args, **more)
            finally:
                seconds = time.thread_time() - begin
                row = self.seconds[self._row]
                row[number] += seconds - self._inside.seconds
                row[-1] += 1
                self._inside.seconds = outside + seconds

        return run

    def price(self, calls: int = 20_000) -> float:
        """Seconds that one call takes longer with a clock than without."""
        spent = {}
        for name, function in (("with", self._timed(0, int)), ("without", int)):
            begin = time.thread_time()
            for _ in range(calls):
                function()
            spent[name] = time.thread_time() - begin
        return (spent["with"] - spent["without"]) / calls


def processor_seconds(pids: list[int]) -> float:
    """What some processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def profile(tars: Path, workers: int, epochs: int, *, reuse: bool) -> dict[str, float]:
    """Microseconds of processor time an image by stage; the clocks stay in this process.

    Args:
        tars: A dataset of JPEGs.
        workers: Processes.
        epochs: To measure, after one that warms up.
        reuse: Whether blocks lie in a ring.
    """
    clocks = Clocks()
    torch.set_num_threads(1)
    dataset = ss.ShardDataset(
        tars, batch_size=64, shuffle=True, parts=("jpg", "cls"), tail="exact",
        decode={"jpg": ss.RandomResizedCrop(224, memory_format=torch.channels_last)},
    )  # fmt: skip
    with ss.StreamLoader(dataset, num_workers=workers, reuse=reuse, start_method="fork") as loader:
        for _ in loader:
            pass
        pids = [handle.process.pid for handle in loader._pool._handles]
        before, used, trainer = clocks.seconds.copy(), processor_seconds(pids), time.process_time()
        begin, images = time.perf_counter(), 0
        for _ in range(epochs):
            for _, labels in loader:
                images += len(labels)
        seconds = time.perf_counter() - begin
        used, trainer = processor_seconds(pids) - used, time.process_time() - trainer
        *stages, calls = (clocks.seconds - before)[:_ROWS].sum(0).tolist()
    figures = {name: spent / images * 1e6 for name, spent in zip(STAGES, stages, strict=True)}
    figures[PYTHON] = (used - sum(stages) - calls * clocks.price()) / images * 1e6
    figures[TRAINER] = trainer / images * 1e6
    figures[BUSY] = used / (seconds * workers)
    return figures


def profile_both(tars: Path, workers: int, epochs: int) -> dict[str, dict[str, float]]:
    """With blocks for keeps and lent, each in a process of its own; printed."""
    both = {}
    for name, reuse in (("batches for keeps", False), ("reuse=True", True)):
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
            asked = executor.submit(profile, tars, workers, epochs, reuse=reuse)
            both[name] = asked.result()
    told(both)
    return both


def told(both: dict[str, dict[str, float]]) -> None:
    """Print them side by side, each stage with its part of a worker's time."""
    print(f"\n{'us of processor time an image':36}" + "".join(f"{name:>28}" for name in both))
    stages = [*STAGES, PYTHON]
    whole = {name: sum(figures[stage] for stage in stages) for name, figures in both.items()}
    for stage in stages:
        cells = (
            f"{figures[stage]:18.1f}  {figures[stage] / whole[name]:8.1%}"
            for name, figures in both.items()
        )
        print(f"{stage:36}" + "".join(cells))
    for last in (TRAINER, BUSY):
        cells = (f"{figures[last]:18.2f}{'':10}" for figures in both.values())
        print(f"{last:36}" + "".join(cells))
