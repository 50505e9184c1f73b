"""Run by torchrun: a loader that Accelerate prepared; OUT/rank.json gets the keys of each batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import accelerate

import streamshard as ss


def main() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    dataset = ss.ShardDataset(sys.argv[2], batch_size=10, shuffle=True, tail="exact", lanes=1)
    loader = accelerator.prepare(ss.StreamLoader(dataset, num_workers=1))
    keys = [batch["__key__"] for batch in loader]
    rank = accelerator.process_index
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(keys))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
