"""Run by torchrun: passes over several datasets, with a collective in every step.

in_step_job.py OUT SETTINGS: SETTINGS is a JSON list of {name, url, workers, tail, shuffle, batch},
for graphs with a `budget` instead of the batch size, with a cursor under `state` where a pass is to
go on, and `stop` where it is to end early. Each rank writes OUT/rank.json: by name its steps, the
keys of each, and the state after them.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import streamshard as ss


def run(setting: dict[str, Any]) -> dict[str, Any]:
    dataset = ss.ShardDataset(
        setting["url"],
        batch_size=setting.get("batch"),
        budget=ss.Budget(**setting["budget"]) if "budget" in setting else None,
        tail=setting["tail"],
        shuffle=setting["shuffle"],
        lanes=6 if setting["shuffle"] is True else None,
        grain=4 if setting["shuffle"] is True and "batch" in setting else None,
        window=64 if setting["shuffle"] is True else None,
    )
    try:
        loader = ss.StreamLoader(dataset, num_workers=setting["workers"], prefetch=2)
        if "state" in setting:
            loader.load_state_dict(setting["state"])
        promised = loader.steps_left
    except ss.errors.StreamshardError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    batches: list[dict[str, Any]] = []
    epoch, state = loader.epoch, loader.state_dict()
    with loader:
        stop = setting.get("stop")
        if stop != 0:
            for batch in loader:
                # Hangs, and then fails, unless every rank is in the same step.
                count = torch.tensor([len(batches)])
                dist.all_reduce(count)
                assert int(count) == len(batches) * dist.get_world_size()
                mask = batch["__mask__"].tolist() if "__mask__" in batch else None
                batches.append({"keys": batch["__key__"], "mask": mask})
                state = loader.state_dict()
                if len(batches) == stop:
                    break
    return {"epoch": epoch, "promised": promised, "batches": batches, "state": state}


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    results = {
        setting["name"]: run(setting) for setting in json.loads(Path(sys.argv[2]).read_text())
    }
    (Path(sys.argv[1]) / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
