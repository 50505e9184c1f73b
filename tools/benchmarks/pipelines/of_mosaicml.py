"""MosaicML streaming: MDS shards of 32 MiB, its default shuffle, Pillow, torch's DataLoader."""

import importlib.util
import shutil
import sys
import types
from pathlib import Path

from serving import AHEAD, BATCH_SIZE, Pipeline, serve

# isort: split

# The package's __init__ imports torchvision and transformers, which its datasets do not need.
_root = Path(importlib.util.find_spec("streaming").origin).parent
for _name, _folder in (("streaming", _root), ("streaming.base", _root / "base")):
    sys.modules[_name] = types.ModuleType(_name)
    sys.modules[_name].__path__ = [str(_folder)]

import torch  # noqa: E402
from pillow_crop import collate_for, prepared  # noqa: E402
from streaming.base.dataset import StreamingDataset  # noqa: E402
from streaming.base.format import MDSWriter  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402


class Samples(StreamingDataset):
    def __init__(self, task) -> None:
        super().__init__(local=task.home, shuffle=True, batch_size=BATCH_SIZE)
        self.task = task

    def __getitem__(self, number: int):
        sample = super().__getitem__(number)
        return prepared(self.task, sample["jpg"]), sample["cls"]


class MosaicML(Pipeline):
    def pack(self) -> None:
        shutil.rmtree(self.task.home, ignore_errors=True)
        columns = {"jpg": "bytes", "cls": "int"}
        with MDSWriter(out=self.task.home, columns=columns, size_limit=1 << 25) as out:
            for path, label in self.task.files:
                out.write({"jpg": Path(path).read_bytes(), "cls": label})

    def open(self) -> DataLoader:
        clean_stale_shared_memory()  # of the loader before; it refuses to use its names again
        return DataLoader(
            Samples(self.task), batch_size=BATCH_SIZE, num_workers=self.task.workers,
            persistent_workers=True, prefetch_factor=AHEAD, collate_fn=collate_for(self.task),
        )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(MosaicML)
