"""A folder of images to shards."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from streamshard.codec.base import Codec
from streamshard.codec.crop import Resize
from streamshard.codec.image import decode_pixels, encode_pixels
from streamshard.codec.registry import IMAGE_SUFFIXES
from streamshard.errors import PackError, SampleError, UsageError
from streamshard.pack.encode import KEY, escape_key
from streamshard.pack.files import Files, Stamp, check_unchanged, stamp_of
from streamshard.pack.job import OnError, Progress, Summary, pack
from streamshard.pack.sources import Sample, pack_order, walk
from streamshard.pack.writer import ShardWriter

Keys = Literal["path", "number"]
ImageFormat = Literal["jpg", "png", "webp", "npy"]


class ImageInput(NamedTuple):
    """One image file and what its place tells."""

    key: str
    path: str
    part: str
    label: int | None
    stamp: Stamp | None = None  # of the file, when it was listed


@dataclass(frozen=True)
class ImageLoader:
    """Reads one image file and transforms it where that is asked for.

    Attributes:
        format: What to encode to; None keeps the format, and without `resize` the bytes.
        resize: Pixels of the shorter side, or None.
        quality: Of jpg and webp, 1 to 100.
    """

    format: ImageFormat | None = None
    resize: int | None = None
    quality: int = 90

    @property
    def transforms(self) -> bool:
        """Whether images are decoded at all."""
        return self.format is not None or self.resize is not None

    def __call__(self, image: ImageInput) -> Sample:
        """The sample of one file.

        Raises:
            SampleError: The file is gone, unreadable or changed since it was listed, or not a whole
                image where it is decoded; where its bytes are kept, the codec checks them.
        """
        try:
            with open(image.path, "rb") as file:
                data = file.read()
                check_unchanged(file.fileno(), image.stamp)
            sample: Sample = {KEY: image.key, **self._transform(data, image.part)}
        except OSError as error:
            raise SampleError(f"{image.path}: {error.strerror}") from None
        except ValueError as error:
            raise SampleError(f"{image.path}: {error}") from None
        if image.label is not None:
            sample["cls"] = image.label
        return sample

    def _transform(self, data: bytes, part: str) -> dict[str, Any]:
        if not self.transforms:
            return {part: data}
        if self.resize:
            chw = Resize(self.resize)(data)
            pixels = chw.permute(1, 2, 0).numpy()
        else:
            pixels = decode_pixels(data)
        format = self.format or part
        if format == "npy":
            return {format: np.ascontiguousarray(pixels.transpose(2, 0, 1))}
        return {format: encode_pixels(pixels, format, self.quality)}


class ImageFolder:
    """A folder of image files, one folder for each class, or flat.

    Attributes:
        classes: The folders below the root, sorted, or None where it is flat.
        codecs: None of its own.
        notes: What was found while listing.
    """

    def __init__(self, root: str, *, keys: Keys, seed: int | None, loader: ImageLoader) -> None:
        """List the folder.

        Args:
            root: The folder.
            keys: "path" for the path below the root without suffix, "number" for the place in
                sorted order.
            seed: Of the order in which samples are packed; None keeps the sorted order.
            loader: Reads and transforms.

        Raises:
            PackError: There is no such folder, no image in it, images both in class folders and
                beside them, or several formats and no `format`.
        """
        self.load = loader
        self.codecs: Mapping[str, Codec] = {}
        self.notes: list[str] = []
        paths = self._list(root)
        labels = [path.parts[0] if len(path.parts) > 1 else None for path in paths]
        named = sorted({label for label in labels if label is not None})
        self.classes = named or None
        if named and None in labels:
            odd = paths[labels.index(None)]
            raise PackError(
                f"{root}: {odd} lies beside the class folders ({named[0]}, …), not in one"
            )
        parts = [_part_of_image(path) for path in paths]
        if len(set(parts)) > 1 and loader.format is None:
            both = [str(paths[parts.index(part)]) for part in sorted(set(parts))[:2]]
            raise PackError(
                f"{root}: several formats ({both[0]}, {both[1]}); --format jpg (or png, webp, npy) "
                "makes them one"
            )
        numbers = {name: number for number, name in enumerate(named)}
        width = max(6, len(str(len(paths) - 1)))
        self._inputs = [
            ImageInput(
                f"{number:0{width}d}" if keys == "number" else _key_of(path),
                os.path.join(root, path),
                part,
                None if label is None else numbers[label],
            )
            for number, (path, label, part) in enumerate(zip(paths, labels, parts, strict=True))
        ]
        self._files = Files.of(
            [str(path) for path in paths], (stamp_of(image.path) for image in self._inputs)
        )
        escaped = sum("%" in item.key for item in self._inputs)
        if escaped:
            self.notes.append(f"{escaped} keys had characters that were escaped as %XX")
        self._order = pack_order(len(paths), seed)

    def _list(self, root: str) -> list[Path]:
        if not os.path.isdir(root):
            what = "is a file, not a folder" if os.path.exists(root) else "no such folder"
            raise PackError(f"{root}: {what}")
        images, folders, others = [], [], 0
        for folder, files in walk(root):
            below = Path(folder).relative_to(root)
            folders.append(below)
            for name in files:
                if _part_of_image(Path(name)) in IMAGE_SUFFIXES:
                    images.append(below / name)
                else:
                    others += 1
        if not images:
            raise PackError(
                f"{root}: no images (files ending in .{', .'.join(IMAGE_SUFFIXES)}) there, "
                f"{others} other files"
            )
        found = {path.parts[0] for path in images if len(path.parts) > 1}
        empty = sorted({folder.parts[0] for folder in folders if folder.parts} - found)
        if found and empty:
            # Left out in silence, it would shift the numbers of all classes after it.
            raise PackError(f"{root}/{empty[0]}: a class folder without an image; remove it")
        if others:
            self.notes.append(f"{others} files that are no images were left out")
        return sorted(images, key=lambda path: path.parts)

    def inputs(self) -> Sequence[ImageInput]:
        """See `Source`."""
        return _InOrder(self._inputs, self._files, self._order)

    def files(self) -> Files:
        """See `Listed`: in pack order, by their paths below the folder."""
        names, order = self._files.names, np.array(self._order, np.int64)
        sizes, marks = self._files.sizes[order], self._files.marks[order]
        return Files([names[number] for number in self._order], sizes, marks)

    @property
    def place(self) -> Callable[[ImageInput], str]:
        """See `Source`: the file's path."""
        return operator.attrgetter("path")

    @property
    def portable(self) -> bool:
        """See `Source`: only decoding and encoding is worth another process."""
        return self.load.transforms


class _InOrder(Sequence[ImageInput]):
    """Images in pack order, each with the stamp of its file."""

    def __init__(self, images: Sequence[ImageInput], files: Files, order: Sequence[int]) -> None:
        self._images, self._files, self._order = images, files, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> ImageInput:  # type: ignore[override]
        number = self._order[place]
        stamp = Stamp(int(self._files.sizes[number]), int(self._files.marks[number]))
        return self._images[number]._replace(stamp=stamp)


def _part_of_image(path: Path) -> str:
    suffix = path.suffix[1:].lower()
    return "jpg" if suffix == "jpeg" else suffix


def _key_of(path: Path) -> str:
    return escape_key(str(path.with_suffix("")))


def pack_images(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    shard_size: int | str = "256MB",
    resize: int | None = None,
    format: ImageFormat | None = None,
    quality: int = 90,
    shuffle: bool = True,
    seed: int = 0,
    keys: Keys = "path",
    on_error: OnError = "raise",
    overwrite: bool = False,
    resume: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    start_method: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Pack a folder of images, one folder for each class or flat, into shards.

    Args:
        source: The folder. Parts: the images' suffix (`jpg`, `png`, …) and, with class folders,
            `cls`, the number of the class.
        destination: Folder or URL; it must hold nothing yet.
        shard_size: Bytes of a shard, a number or such as "256MB" (decimal).
        resize: Pixels of the shorter side; by default images keep their bytes.
        format: jpg, png, webp or npy, a uint8 array (3, height, width).
        quality: Of jpg and webp, 1 to 100, where images are encoded.
        shuffle: Pack in random order; a folder is sorted by class, and a stream mixes only what
            lies near.
        seed: Of that order.
        keys: "path" or "number".
        on_error: "raise", or "skip" to leave out what can't be read.
        overwrite: Replace the dataset that lies there.
        resume: Go on with a pack that was not finished; the bytes are as if it had not ended.
        workers: Processes; by default all cores where images are encoded, none where they are not.
        executor: Use this `concurrent.futures` executor instead.
        start_method: Of those processes: fork, spawn or forkserver; the platform's default if None.
        storage_options: For fsspec.
        progress: Called with samples done, samples in all, and bytes done.

    Returns:
        What was done.

    Raises:
        PackError: The folder can't be packed as asked, another pack writes there, or the one to go
            on with is of other files or options.
        SampleError: An image can't be read, and `on_error` is "raise".
        UsageError: The destination is not empty, or an argument breaks its rule.
    """
    if keys not in ("path", "number"):
        raise UsageError(f'keys is {keys!r}; it must be "path" or "number"')
    if format not in (None, "jpg", "png", "webp", "npy"):
        raise UsageError(f"format is {format!r}; it must be jpg, png, webp or npy")
    if not 1 <= quality <= 100 or (resize is not None and resize < 1):
        raise UsageError(f"quality {quality} must be 1 to 100, resize {resize} at least 1 pixel")
    folder = ImageFolder(
        os.fspath(source),
        keys=keys,
        seed=seed if shuffle else None,
        loader=ImageLoader(format, resize, quality),
    )
    writer = ShardWriter(
        destination,
        shard_size=shard_size,
        classes=folder.classes,
        overwrite=overwrite,
        resume=resume,
        storage_options=storage_options,
    )
    return pack(
        folder,
        writer,
        workers=workers,
        executor=executor,
        start_method=start_method,
        on_error=on_error,
        progress=progress,
        about={
            "source": os.path.abspath(source),
            "resize": resize,
            "format": format,
            "quality": quality,
            "seed": seed if shuffle else None,
            "keys": keys,
        },
    )
