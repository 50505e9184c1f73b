"""DALI on the CPU: the same tars; it decodes no more of a JPEG than the crop needs.

Out come uint8 batches in HWC, its usual layout: a transpose would cost it more.
"""

from collections.abc import Iterator
from pathlib import Path

from serving import AHEAD, BATCH_SIZE, CROP, Pipeline, serve

# isort: split

from nvidia.dali import fn, pipeline_def, types


@pipeline_def
def crops(tars):
    jpg, label = fn.readers.webdataset(
        paths=tars, ext=["jpg", "cls"], random_shuffle=True, initial_fill=1000, name="reader",
        missing_component_behavior="error",
    )  # fmt: skip
    image = fn.decoders.image_random_crop(
        jpg, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
    )
    size = {"resize_x": CROP, "resize_y": CROP, "interp_type": types.INTERP_LINEAR}
    return fn.resize(image, **size), label


class Epochs:
    """Its batches, an epoch at a time."""

    def __init__(self, pipe) -> None:
        self.pipe = pipe
        self.steps = -(-pipe.epoch_size("reader") // BATCH_SIZE)

    def __iter__(self) -> Iterator:
        for _ in range(self.steps):
            images, _ = self.pipe.run()
            yield images


class Dali(Pipeline):
    def open(self) -> Epochs:
        tars = sorted(map(str, Path(self.task.tars).glob("*.tar")))
        pipe = crops(
            tars, batch_size=BATCH_SIZE, num_threads=self.task.workers, device_id=None,
            prefetch_queue_depth=AHEAD,
        )  # fmt: skip
        pipe.build()
        return Epochs(pipe)

    def begin(self, loader: Epochs) -> None:
        for _ in range(AHEAD):  # it had these ready
            loader.pipe.run()

    def count(self, batch) -> int:
        return len(batch)


if __name__ == "__main__":
    serve(Dali)
