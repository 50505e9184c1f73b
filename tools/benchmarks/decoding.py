"""What a random crop costs beside decoding and resizing, and what a JPEG costs at each scale."""

import io
import itertools
import math
import random
import statistics
import time
import zlib
from collections.abc import Callable

import numpy as np
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from zlib_ng import zlib_ng

import streamshard as ss
from streamshard.codec.framing import _resize_into
from streamshard.codec.picture import opened

COUNT, SIZE = 40, (224, 224)


def photographs() -> list[bytes]:
    """Cut out of scikit-learn's two, 375 x 500, about 110 KB each."""
    rng, jpegs = np.random.default_rng(0), []
    for number in range(COUNT):
        photograph = load_sample_images().images[number % 2]
        top, left = (rng.integers(0, photograph.shape[i] - (375, 500)[i] + 1) for i in (0, 1))
        file = io.BytesIO()
        part = np.ascontiguousarray(photograph[top : top + 375, left : left + 500])
        Image.fromarray(part).save(file, "JPEG", quality=98)
        jpegs.append(file.getvalue())
    return jpegs


def interleaved(runs: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Microseconds of this thread a photograph, the median of rounds that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.thread_time()
            for photograph in range(COUNT):
                run(photograph)
            if number:
                seconds[name].append((time.thread_time() - begin) / COUNT)
    return {name: statistics.median(values) * 1e6 for name, values in seconds.items()}


def box_of(full_height: int, full_width: int) -> tuple[int, int, int, int]:
    """As torchvision draws it, with Python's numbers."""
    for _ in range(10):
        area = full_height * full_width * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= full_width and height <= full_height:
            top = random.randint(0, full_height - height)
            return top, random.randint(0, full_width - width), height, width
    return 0, 0, full_height, full_width


def decoding(rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    jpegs, generator = photographs(), torch.Generator()
    crop = ss.RandomResizedCrop(SIZE, flip=0.5)
    framings = [
        crop.framing(opened(data).size, generator.manual_seed(number))
        for number, data in enumerate(jpegs)
    ]

    def alone(number: int) -> torch.Tensor:
        (top, left, height, width), _, flip, _ = framings[number]  # known beforehand
        return cut(number, top, left, height, width, flip)

    def drawn(number: int) -> torch.Tensor:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpegs[number])
        return cut(number, *box_of(height, width), random.random() < 0.5)

    def cut(number: int, top: int, left: int, height: int, width: int, flip: bool) -> torch.Tensor:
        pixels = simplejpeg.decode_jpeg(jpegs[number], "RGB")
        box = torch.from_numpy(pixels[top : top + height, left : left + width])
        image = torch.nn.functional.interpolate(
            box[None].permute(0, 3, 1, 2), SIZE, mode="bilinear", antialias=True
        )[0]
        return image.flip(2) if flip else image

    def whole(number: int) -> torch.Tensor:
        return crop(jpegs[number], generator.manual_seed(number))

    assert all(torch.equal(alone(number), whole(number)) for number in range(COUNT))
    times = interleaved({"alone": alone, "drawn": drawn, "whole": whole}, 5 * rounds)

    def at(eighths: int) -> Callable[[int], object]:
        height, width = (-(-side * eighths // 8) for side in (375, 500))
        return lambda number: simplejpeg.decode_jpeg(
            jpegs[number], "RGB", min_height=height, min_width=width
        )

    scales = interleaved({str(eighths): at(eighths) for eighths in range(1, 9)}, rounds)
    return {
        **colours(jpegs, rounds),
        "a random crop / its decode, crop, resize alone": times["whole"] / times["alone"],
        "a random crop / the same with a box drawn": times["whole"] / times["drawn"],
        **{f"a JPEG at {name}/8 / at 8/8": value / scales["8"] for name, value in scales.items()},
    }


def colours(jpegs: list[bytes], rounds: int) -> dict[str, float]:
    """Colours of a pixel that lie together or apart, libjpeg-turbo's short cuts, and crc32."""
    boxes = [torch.from_numpy(simplejpeg.decode_jpeg(data))[80:270, 100:290] for data in jpegs]
    apart, together = torch.empty(3, *SIZE, dtype=torch.uint8), torch.zeros(*SIZE, 3).byte()

    # Too many for a cache, as the rows of a ring are.
    rows = torch.zeros(8 * COUNT, *SIZE, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    turn = itertools.cycle(range(8))

    def resized(batch: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(batch, SIZE, mode="bilinear", antialias=True)

    def into_row(number: int) -> None:
        row = rows[next(turn) * COUNT + number]
        _resize_into(
            boxes[number][None].permute(0, 3, 1, 2), SIZE, False, None, None, out=row[None]
        )

    def copied_to_row(number: int) -> None:
        row = rows[next(turn) * COUNT + number]
        row.copy_(resized(boxes[number][None].permute(0, 3, 1, 2))[0])

    short_cuts = {"fastdct": True, "fastupsample": True}
    times = interleaved({
        "together": lambda number: resized(boxes[number][None].permute(0, 3, 1, 2)),
        "into its row": into_row,
        "copied to its row": copied_to_row,
        "apart": lambda number: resized(boxes[number].permute(2, 0, 1)[None]),
        "taken apart": lambda _: apart.copy_(together.permute(2, 0, 1)),
        "decoded": lambda number: simplejpeg.decode_jpeg(jpegs[number]),
        "short cuts": lambda number: simplejpeg.decode_jpeg(jpegs[number], **short_cuts),
        "zlib": lambda number: zlib.crc32(jpegs[number]),
        "zlib-ng": lambda number: zlib_ng.crc32(jpegs[number]),
    }, 3 * rounds)  # fmt: skip
    return {
        "us to resize 190 x 190 to 224 x 224, colours together": times["together"],
        "us to resize it into its row": times["into its row"],
        "us to resize it by interpolate and copy it there": times["copied to its row"],
        "us to do it, colours apart": times["apart"],
        "us to take the colours of the result apart": times["taken apart"],
        "a JPEG by fastdct and fastupsample / by neither": times["short cuts"] / times["decoded"],
        "us for crc32 of 110 KB by zlib": times["zlib"],
        "us for crc32 of 110 KB by zlib-ng": times["zlib-ng"],
    }
