"""FFCV: RandomResizedCropRGBImageDecoder, random order, page cache, uint8, channels last.

Its writer would encode every JPEG anew; it is given the files' own bytes instead, so that it
decodes what all others decode. "raw": its pixels are stored as they are.
"""

from pathlib import Path

from serving import BATCH_SIZE, CROP, Pipeline, serve

# isort: split

import ffcv.fields.rgb_image
import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image


class Rows:
    """What its writer is given."""

    data = b""  # of the image that is being written, in the process that writes it

    def __init__(self, files) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int):
        path, label = self.files[number]
        Rows.data = Path(path).read_bytes()
        return Image.open(path).convert("RGB"), label


class Ffcv(Pipeline):
    def pack(self) -> None:
        Path(self.task.home).mkdir(exist_ok=True)
        ffcv.fields.rgb_image.encode_jpeg = lambda *_: np.frombuffer(Rows.data, np.uint8)
        mode = "raw" if self.task.what == "raw" else "jpg"
        fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
        writer = DatasetWriter(f"{self.task.home}/data.beton", fields, num_workers=2)
        writer.from_indexed_dataset(Rows(self.task.files))

    def open(self) -> Loader:
        crop = RandomResizedCropRGBImageDecoder((CROP, CROP))
        return Loader(
            f"{self.task.home}/data.beton", batch_size=BATCH_SIZE, num_workers=self.task.workers,
            order=OrderOption.RANDOM, os_cache=True, drop_last=False,
            pipelines={
                "image": [crop, ToTensor(), ToTorchImage()],
                "label": [IntDecoder(), ToTensor(), Squeeze()],
            },
        )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Ffcv)
