"""The JPEGs that pipelines are measured on: given ones, or crops of photographs of packages."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from streamshard.codec.crop import shorter_side
from streamshard.codec.image import encode_pixels

SIZE = (500, 375)  # width and height of most of ImageNet's
MEAN_BYTES = 110_000  # of ImageNet's training images
SUFFIXES = {".jpg", ".jpeg"}
# Photographs within scikit-image's wheel; the rest of its data would be downloaded.
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png",
    "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg",
)  # fmt: skip


def make_jpegs(folder: Path, count: int) -> int:
    """Write crops of photographs, a class folder for each photograph, and return the quality.

    A crop is 60 % to 100 % of the largest rectangle of 4:3, flipped or not, at 500 x 375. All have
    one quality: that at which they take nearly as many bytes as ImageNet's in the mean.
    """
    photographs = dict(_photographs())
    crops = list(_crops(photographs, count))
    quality = _quality_for([image for _, image in crops[:100]])
    for number, (name, image) in enumerate(crops):
        path = folder / name / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encoded(image, quality))
    return quality


def jpegs_in(folder: Path) -> list[Path]:
    """Sorted by name.

    Raises:
        SystemExit: There are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"tools/bench: no JPEGs in {folder}")
    return files


def take_jpegs(source: Path, folder: Path, count: int) -> None:
    """Link to `count` JPEGs of a folder, drawn at random; of fewer, each several times."""
    files = jpegs_in(source)
    order = np.random.default_rng(0).permutation(len(files))
    for number in range(count):
        file = files[order[number % len(files)]].resolve()
        path = folder / (file.parent.name if file.parent != source else "0") / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file)


def make_small(
    source: Path, folder: Path, *, marked: bool, length: int = 256, quality: int = 90
) -> None:
    """The same images with a shorter side of `length` pixels, as many keep ImageNet.

    Args:
        source: The images.
        folder: Where these are written.
        marked: Encode them as `streamshard pack images --resize` does, with restart markers; else
            as most programs do, without.
        length: Pixels of the shorter side.
        quality: Of the JPEGs.
    """
    for file in jpegs_in(source):
        image = Image.open(file).convert("RGB")
        height, width = shorter_side((image.height, image.width), length)
        path = (folder / file.relative_to(source)).with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        if marked:
            path.write_bytes(encode_pixels(np.asarray(image), "jpg", quality))
        else:
            path.write_bytes(_encoded(image, quality))


def mean_bytes(folder: Path) -> float:
    """Of the JPEGs in a folder."""
    return float(np.mean([path.stat().st_size for path in jpegs_in(folder)]))


def _photographs() -> Iterator[tuple[str, Image.Image]]:
    """Names and photographs; without scikit-image only two, which is said."""
    samples = load_sample_images()
    for file, pixels in zip(samples.filenames, samples.images, strict=True):
        yield Path(file).stem, Image.fromarray(pixels)
    root = Path(__file__).parents[2]
    home = Path(os.environ.get("STREAMSHARD_PEERS", root / ".peers")) / "photographs"
    folder = next(home.glob("lib/python*/site-packages/skimage/data"), None)
    if folder is None:
        print("only scikit-learn's photographs are there; tools/peers photographs brings more")
        return
    for name in PHOTOGRAPHS:
        yield Path(name).stem, Image.open(folder / name).convert("RGB")


def _crops(photographs: dict[str, Image.Image], count: int) -> Iterator[tuple[str, Image.Image]]:
    rng = np.random.default_rng(0)
    names = list(photographs)
    for number in range(count):
        name = names[number % len(names)]
        image = photographs[name]
        width = rng.uniform(0.6, 1) * min(image.width, image.height * SIZE[0] / SIZE[1])
        height = width * SIZE[1] / SIZE[0]
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        crop = image.resize(SIZE, Image.Resampling.BICUBIC, box=box)
        if rng.integers(2):
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield name, crop


def _quality_for(images: list[Image.Image]) -> int:
    """The quality whose mean is nearest to `MEAN_BYTES`."""

    def miss(quality: int) -> float:
        return abs(float(np.mean([len(_encoded(each, quality)) for each in images])) - MEAN_BYTES)

    return min(range(90, 100), key=miss)


def _encoded(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
