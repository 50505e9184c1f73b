"""Run by torchrun: passes over several datasets, with a collective in every step.

in_step_job.py OUT SETTINGS: SETTINGS is a JSON list of {name, url, workers, tail, shuffle, batch},
where url is a dict of URLs for a mixture, for graphs with a `budget` instead of the batch size,
with a cursor under `state` where a pass is to go on, `stop` where it is to end early, `rule` for
other lanes than the usual ones, `crop` for images cropped at random to so many pixels, and `sums`
for a checksum of each sample. Each rank writes OUT/rank.json: by name its steps, the keys of each,
and the state after them.
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
from tests.stream.data import checksums

WINDOWED = {"lanes": 6, "grain": 4, "window": 64}


def run(setting: dict[str, Any]) -> dict[str, Any]:
    url, usual = setting["url"], dict(WINDOWED) if setting["shuffle"] is True else {}
    if "budget" in setting:
        usual.pop("grain", None)  # has no meaning there
    dataset = ss.ShardDataset(
        ss.Mixture(url) if isinstance(url, dict) else url,
        batch_size=setting.get("batch"),
        budget=ss.Budget(**setting["budget"]) if "budget" in setting else None,
        tail=setting["tail"],
        shuffle=setting["shuffle"],
        decode={"jpg": ss.RandomResizedCrop(setting["crop"])} if "crop" in setting else None,
        **setting.get("rule", usual),
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
                sums = checksums(batch) if "sums" in setting else None
                batches.append({"keys": batch["__key__"], "mask": mask, "sums": sums})
                state = loader.state_dict()
                if len(batches) == stop:
                    break
    return {"epoch": epoch, "promised": promised, "batches": batches, "state": state}


def main(folder: str, told: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    results = {setting["name"]: run(setting) for setting in json.loads(Path(told).read_text())}
    (Path(folder) / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
