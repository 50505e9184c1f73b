"""Contestants that live in the benchmark's own process take turns, epoch by epoch."""

import time
from collections.abc import Callable, Iterable

Run = Callable[[], int]  # one epoch; the number of samples


def in_turns(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Samples per second of every contestant in every round, after one round of warming up."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            samples = run()
            if number:
                rates[name].append(samples / (time.perf_counter() - begin))
    return rates


def epoch(loader: Iterable, count: Callable[[object], int]) -> int:
    return sum(count(batch) for batch in loader)
