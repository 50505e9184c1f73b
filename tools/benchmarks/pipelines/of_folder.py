"""torch's DataLoader over a folder of JPEGs, Pillow."""

from pathlib import Path

from serving import AHEAD, BATCH_SIZE, Pipeline, serve

# isort: split

import torch
from pillow_crop import collate_for, prepared
from torch.utils.data import DataLoader, Dataset


class Files(Dataset):
    def __init__(self, task) -> None:
        self.task, self.files = task, task.files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int):
        path, label = self.files[number]
        return prepared(self.task, Path(path).read_bytes()), label


class Folder(Pipeline):
    def open(self) -> DataLoader:
        return DataLoader(
            Files(self.task), batch_size=BATCH_SIZE, shuffle=True, num_workers=self.task.workers,
            persistent_workers=True, prefetch_factor=AHEAD, collate_fn=collate_for(self.task),
        )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Folder)
