"""LitData: its chunks of 32 MB, its shuffle, Pillow."""

import shutil
from pathlib import Path

from serving import AHEAD, BATCH_SIZE, Pipeline, serve

# isort: split

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from pillow_crop import collate_for, prepared


def packed(row):
    path, label = row
    return {"jpg": Path(path).read_bytes(), "cls": label}


class Samples(StreamingDataset):
    def __init__(self, task) -> None:
        super().__init__(task.home, shuffle=True)
        self.task = task

    def __getitem__(self, number):
        sample = super().__getitem__(number)
        return prepared(self.task, sample["jpg"]), sample["cls"]


class LitData(Pipeline):
    def pack(self) -> None:
        shutil.rmtree(self.task.home, ignore_errors=True)
        optimize(
            fn=packed, inputs=self.task.files, output_dir=self.task.home, chunk_bytes="32MB",
            num_workers=self.task.workers,
        )  # fmt: skip

    def open(self) -> StreamingDataLoader:
        return StreamingDataLoader(
            Samples(self.task), batch_size=BATCH_SIZE, num_workers=self.task.workers,
            persistent_workers=True, prefetch_factor=AHEAD, collate_fn=collate_for(self.task),
        )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(LitData)
