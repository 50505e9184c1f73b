"""The same numbers on every machine, Python and numpy: orders compared with stored ones.

A checkpoint means something only as long as these do not change. After a change that is meant to
break old checkpoints (and raises the cursor's version), write them anew:

    python -m tests.plan.test_golden
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamshard.plan.order import Order, OrderRule, sample_seeds

FOLDER = Path(__file__).parent / "golden"

# name -> ([(samples, that many shards), ...], rule, epoch)
SETTINGS: dict[str, tuple[list[tuple[int, int]], OrderRule, int]] = {
    "imagenet": (
        [(2300, 557)],
        OrderRule(seed=0, shuffle=True, lanes=96, grain=256, window=9200),
        0,
    ),
    # The whole epoch with its leftovers: 1,000 samples in shards of very different sizes.
    "uneven": (
        [(100, 3), (0, 5), (1, 60), (37, 10), (0, 2), (270, 1)],
        OrderRule(seed=2**63 - 1, shuffle=True, lanes=7, grain=9, window=30),
        3,
    ),
    "billions": (
        [(10_000, 1_000_000)],
        OrderRule(seed=7, shuffle=True, lanes=24 * 8192, grain=1, window=40_000),
        11,
    ),
    "full": ([(1234, 10)], OrderRule(seed=42, shuffle="full", lanes=1, grain=1, window=12_340), 1),
    "unshuffled": ([(7, 200)], OrderRule(seed=5, shuffle=False, lanes=1, grain=1, window=1400), 2),
}


def document(name: str) -> dict[str, Any]:
    """The setting, and the order that it has now."""
    runs, rule, epoch = SETTINGS[name]
    samples, repeats = np.array(runs).T
    first = np.arange(1000)
    shards, rows = Order(np.repeat(samples, repeats), rule, epoch).rows(first)
    return {
        "samples_and_shards": [list(each) for each in runs],
        "rule": dataclasses.asdict(rule),
        "epoch": epoch,
        "shards": shards.tolist(),
        "rows": rows.tolist(),
        "seeds": sample_seeds(rule.seed, epoch, first[:100]).tolist(),
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_the_order_is_the_one_that_was_stored(name: str) -> None:
    assert document(name) == json.loads((FOLDER / f"{name}.json").read_text())


def test_every_stored_order_is_compared() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(SETTINGS)


if __name__ == "__main__":
    for each in SETTINGS:
        (FOLDER / f"{each}.json").write_text(json.dumps(document(each)) + "\n")
