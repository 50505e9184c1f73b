"""The limit: processes that decode, crop and resize images which they hold in memory, no more.

By simplejpeg at the smallest scale that covers the crop, and torch's uint8 kernel; or, where
`reuse` is given, by streamshard's own decoder, which tells what its loader costs by itself.
"""

import math
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

from serving import CROP, Pipeline, serve

# isort: split

import simplejpeg
import torch
from pillow_crop import random_box

import streamshard as ss


def plain_crop(data: bytes) -> torch.Tensor:
    """JPEG bytes to (3, 224, 224) uint8, channels last."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    left, top, right, bottom = random_box(width, height)
    pixels = simplejpeg.decode_jpeg(
        data, "RGB",
        min_height=min(height, math.ceil(height * CROP / (bottom - top))),
        min_width=min(width, math.ceil(width * CROP / (right - left))),
    )  # fmt: skip
    scale = pixels.shape[0] / height
    top, bottom, left, right = (round(edge * scale) for edge in (top, bottom, left, right))
    image = torch.from_numpy(pixels[top : max(bottom, top + 1), left : max(right, left + 1)])
    # The colours of a pixel stay together, which takes torch less time.
    image = image[None].permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(
        image, (CROP, CROP), mode="bilinear", align_corners=False, antialias=True
    )[0]


def decode_all(files: list[tuple[str, int]], own: bool, go, done) -> None:
    """The work of one process: all of its images whenever it is told to."""
    torch.set_num_threads(1)
    images = [Path(path).read_bytes() for path, _ in files]
    crop, generator = ss.RandomResizedCrop(CROP), torch.Generator()
    done.put(0)
    while go.get():
        for data in images:
            if own:
                crop(data, generator)
            else:
                plain_crop(data)
        done.put(len(images))


class Rounds:
    """The processes; a pass gives their numbers of images as they are through."""

    def __init__(self, task) -> None:
        context = multiprocessing.get_context("fork")
        self._done = context.Queue()
        self._orders, self._processes = [], []
        for number in range(task.workers):
            order = context.Queue()
            process = context.Process(
                target=decode_all,
                args=(task.files[number :: task.workers], task.reuse, order, self._done),
                daemon=True,
            )
            process.start()
            self._orders.append(order)
            self._processes.append(process)
            self._done.get()

    def __iter__(self) -> Iterator[int]:
        for order in self._orders:
            order.put(True)
        for _ in self._orders:
            yield self._done.get()

    def close(self) -> None:
        for order, process in zip(self._orders, self._processes, strict=True):
            order.put(False)
            process.join()


class Decoding(Pipeline):
    def open(self) -> Rounds:
        return Rounds(self.task)

    def count(self, batch: int) -> int:
        return batch

    def close(self, loader: Rounds) -> None:
        loader.close()


if __name__ == "__main__":
    serve(Decoding)
