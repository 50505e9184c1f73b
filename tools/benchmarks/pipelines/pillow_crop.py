"""What torchvision's RandomResizedCrop does, with Pillow doing the work.

torchvision has no build for this CPU-only torch, and its transforms on a PIL image are Pillow's
`crop` and `resize`; given a box, Pillow's `resize` does both at once.
"""

import io
import random
from math import exp, log

import numpy as np
import torch
from PIL import Image
from serving import CROP

_LOW, _HIGH = log(3 / 4), log(4 / 3)


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom, as torchvision draws them."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        ratio = exp(random.uniform(_LOW, _HIGH))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def pillow_crop(data: bytes) -> torch.Tensor:
    """JPEG bytes to (3, 224, 224) uint8."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = random_box(*image.size)
    resized = image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def prepared(task, data: bytes) -> torch.Tensor | bytes:
    """What of a sample goes into the batch."""
    return data if task.what == "bytes" else pillow_crop(data)


def collate_for(task):
    """How samples become a batch: stacked, or a list of bytes and a tensor of classes."""
    from torch.utils.data import default_collate

    return bytes_and_classes if task.what == "bytes" else default_collate


def bytes_and_classes(samples):
    """Encoded files stay a list of bytes."""
    return [data for data, _ in samples], torch.tensor([number for _, number in samples])
