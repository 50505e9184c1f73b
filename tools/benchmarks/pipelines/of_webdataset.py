"""webdataset: the same tars, Pillow, a shuffle buffer of 1,000, batches made in the workers."""

from functools import partial
from pathlib import Path

from serving import AHEAD, BATCH_SIZE, Pipeline, serve

# isort: split

import torch
import webdataset as wds
from pillow_crop import collate_for, prepared


def taken(sample, task):
    return prepared(task, sample["jpg"]), int(sample["cls"])


class Webdataset(Pipeline):
    def open(self) -> wds.WebLoader:
        tars = sorted(map(str, Path(self.task.tars).glob("*.tar")))
        data = wds.WebDataset(tars, shardshuffle=16, nodesplitter=wds.split_by_node).shuffle(1000)
        data = data.map(partial(taken, task=self.task))
        data = data.batched(BATCH_SIZE, partial=True, collation_fn=collate_for(self.task))
        return wds.WebLoader(
            data, batch_size=None, num_workers=self.task.workers, persistent_workers=True,
            prefetch_factor=AHEAD,
        )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Webdataset)
