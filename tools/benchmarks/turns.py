"""Contestants take turns, epoch by epoch, so that what disturbs one disturbs all."""

import statistics
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


def report(rates: dict[str, list[float]]) -> dict[str, float]:
    """Print medians, and each pair's ratio: contestants come in twos, ours first."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, median in medians.items():
        print(f"{name:32} {median:12,.0f} samples/s  (of {len(rates[name])} epochs)")
    names, ratios = list(medians), {}
    for ours, theirs in zip(names[::2], names[1::2], strict=True):
        ratios[f"{ours} / {theirs}"] = medians[ours] / medians[theirs]
    for pair, ratio in ratios.items():
        print(f"{pair}: {ratio:.2f}")
    return {**medians, **ratios}
