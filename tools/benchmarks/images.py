"""JPEGs of this script's making: decode, crop to 224, batch; and their bytes alone."""

import io
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from turns import Run, epoch, in_turns, report

import streamshard as ss

CROP = 224


def make_jpegs(folder: Path, count: int) -> None:
    """Smooth pictures with texture, 500 x 375 at quality 95: about 110 KB, as ImageNet's."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        picture = picture + rng.normal(0, 9, picture.shape)
        path = folder / f"{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=88)


def pillow_crop(sample) -> tuple[torch.Tensor, int]:
    """What torchvision's RandomResizedCrop does, with Pillow doing the work."""
    image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
    width, height = image.size
    area = width * height * np.random.uniform(0.08, 1.0)
    ratio = np.exp(np.random.uniform(np.log(3 / 4), np.log(4 / 3)))
    w = min(width, max(1, round((area * ratio) ** 0.5)))
    h = min(height, max(1, round((area / ratio) ** 0.5)))
    left, top = np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1)
    box = (left, top, left + w, top + h)
    resized = image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1), int(sample["cls"])


def contestants(folder: Path, workers: int) -> dict[str, Run]:
    make_jpegs(folder / "jpegs", 1000)
    ss.pack_images(folder / "jpegs", folder / "packed", shard_size="16MB")
    tars = sorted(map(str, (folder / "packed").glob("*.tar")))
    torch.set_num_threads(1)
    decode = {"jpg": ss.RandomResizedCrop(CROP)}
    options = {"batch_size": 64, "shuffle": True, "parts": ("jpg", "cls"), "tail": "exact"}

    def of_streamshard(**more) -> Run:
        dataset = ss.ShardDataset(folder / "packed", **options, **more)
        loader = ss.StreamLoader(dataset, num_workers=workers)
        return lambda: epoch(loader, lambda batch: len(batch[1]))

    def of_webdataset(raw: bool) -> Run:
        data = wds.WebDataset(tars, shardshuffle=16, nodesplitter=wds.split_by_node).shuffle(1000)
        if raw:
            data = data.map(lambda sample: (sample["jpg"], int(sample["cls"])))
            data = data.batched(64, partial=True, collation_fn=list)
        else:
            collate = torch.utils.data.default_collate
            data = data.map(pillow_crop).batched(64, partial=True, collation_fn=collate)
        loader = wds.WebLoader(
            data, batch_size=None, num_workers=workers, persistent_workers=True, prefetch_factor=4
        )
        return lambda: epoch(loader, lambda batch: len(batch) if raw else len(batch[1]))

    return {
        "streamshard": of_streamshard(decode=decode),
        "webdataset": of_webdataset(raw=False),
        "streamshard, bytes only": of_streamshard(decode={"jpg": bytes}),
        "webdataset, bytes only": of_webdataset(raw=True),
    }


def measure(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    return report(in_turns(contestants(folder, workers), rounds))
