"""A folder of images to shards."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Unpack

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from streamshard.codec.base import Codec
from streamshard.codec.registry import IMAGE_SUFFIXES
from streamshard.errors import PackError
from streamshard.pack.choose import Globs
from streamshard.pack.deliver import deliver
from streamshard.pack.files import Files, Stamp, stamp_of
from streamshard.pack.image_loader import (
    ImageFormat,
    ImageInput,
    ImageLoader,
    Keys,
    Reencode,
    check_formats,
    check_keys,
    is_image,
    key_of_path,
    part_of_image,
)
from streamshard.pack.job import Summary
from streamshard.pack.labels import read_labels
from streamshard.pack.options import (
    PackOptions,
    check_names,
    globs_of,
    reachable,
    seed_of,
)
from streamshard.pack.sources import pack_order, walk
from streamshard.shard.columns import Strings


class ImageFolder:
    """A folder of image files, one folder for each class, or flat.

    Attributes:
        classes: The folders below the root, sorted, or None where it is flat; of a file of labels,
            those that are text.
        codecs: None of its own.
        notes: What was found while listing.
        labels_crc: A checksum of what a file of labels says of the images, or None.
    """

    def __init__(
        self,
        root: str,
        *,
        keys: Keys,
        seed: int | None,
        reencode: Reencode,
        globs: Globs,
        labels: str | None,
    ) -> None:
        """List the folder.

        Args:
            root: The folder.
            keys: "path" for the path below the root without suffix, "number" for the place in
                sorted order.
            seed: Of the order in which samples are packed; None keeps the sorted order.
            reencode: What becomes of the images.
            globs: Which paths are taken; the others are as though they were not there.
            labels: A file of labels by path; None takes the folders.

        Raises:
            PackError: There is no such folder, no image in it, images both in class folders and
                beside them, several formats and no `format`, or an image without a label.
        """
        self.load = ImageLoader(reencode)
        self.codecs: Mapping[str, Codec] = {}
        self.notes: list[str] = []
        self._root = root
        paths = self._chosen(self._list(root, by_class=labels is None), globs)
        numbers = self._by_file(paths, labels) if labels else self._by_folder(paths)
        check_formats(root, {part_of_image(path): path for path in reversed(paths)}, reencode)
        self.labels_crc = crc32(numbers) if labels and numbers is not None else None
        self._numbers = numbers
        self._width = max(6, len(str(len(paths) - 1))) if keys == "number" else 0
        escaped = 0 if self._width else sum("%" in key_of_path(path) for path in paths)
        if escaped:
            self.notes.append(f"{escaped} keys had characters that were escaped as %XX")
        # Bytes instead of strings: of a million images, 100 MB instead of 500.
        self._files = Files.of(
            Strings.of(paths),
            (stamp_of(os.path.join(root, path)) for path in paths),
            one_each=True,
        )
        self._order = pack_order(len(paths), seed)

    def _list(self, root: str, *, by_class: bool) -> list[str]:
        if not os.path.isdir(root):
            what = "is a file, not a folder" if os.path.exists(root) else "no such folder"
            raise PackError(f"{root}: {what}")
        images, folders, others = [], [], 0
        for folder, files in walk(root):
            below = folder.removeprefix(root).strip("/")
            folders.append(below)
            found = [f"{below}/{name}" if below else name for name in files if is_image(name)]
            images += found
            others += len(files) - len(found)
        if not images:
            raise PackError(
                f"{root}: no images (files ending in .{', .'.join(IMAGE_SUFFIXES)}) there, "
                f"{others} other files"
            )
        classes = {path.partition("/")[0] for path in images if "/" in path}
        empty = sorted({folder.partition("/")[0] for folder in folders if folder} - classes)
        if classes and empty and by_class:
            # Left out in silence, it would shift the numbers of all classes after it.
            raise PackError(f"{root}/{empty[0]}: a class folder without an image; remove it")
        if others:
            self.notes.append(f"{others} files that are no images were left out")
        return sorted(images, key=lambda path: path.replace("/", "\0"))  # folder by folder

    def _chosen(self, paths: list[str], globs: Globs) -> list[str]:
        if not globs:
            return paths
        chosen = [path for path in paths if globs.accept(path, key_of_path(path))]
        if not chosen:
            raise PackError(
                f"{self._root}: none of {len(paths)} images is left by --include and --exclude"
            )
        self.notes += globs.note(len(paths) - len(chosen))
        return chosen

    def _by_folder(self, paths: list[str]) -> NDArray[np.int64] | None:
        """The number of each path's first folder, where there are folders."""
        named = sorted({path.partition("/")[0] for path in paths if "/" in path})
        self.classes: Sequence[str] | None = named or None
        if not named:
            return None
        odd = next((path for path in paths if "/" not in path), None)
        if odd is not None:
            raise PackError(
                f"{self._root}: {odd} lies beside the class folders ({named[0]}, …), not in one"
            )
        numbers = {folder: number for number, folder in enumerate(named)}
        return np.fromiter((numbers[path.partition("/")[0]] for path in paths), np.int64)

    def _by_file(self, paths: list[str], file: str) -> NDArray[np.int64]:
        """The number of each path's label in a file."""
        labels = read_labels(file)
        self.classes = labels.classes
        names = ((path, str(PurePath(path).with_suffix("")), key_of_path(path)) for path in paths)
        numbers = [
            next((labels.numbers[n] for n in each if n in labels.numbers), None) for each in names
        ]
        without = numbers.count(None)
        if without:
            odd = paths[numbers.index(None)]
            raise PackError(
                f"{labels.name}: no label for {odd}"
                + (f" and {without - 1} others" if without > 1 else "")
                + "; a label for each path below the folder, with or without suffix, is wanted"
            )
        if len(labels.numbers) > len(paths):
            self.notes.append(f"{len(labels.numbers) - len(paths)} labels belong to no image")
        return np.array(numbers, np.int64)

    def inputs(self) -> Sequence[ImageInput]:
        """See `Source`."""
        return _InOrder(self._image, self._order)

    def _image(self, number: int) -> ImageInput:
        """One image, and the stamp of its file."""
        files, path = self._files, self._files.names[number]
        return ImageInput(
            f"{number:0{self._width}d}" if self._width else key_of_path(path),
            os.path.join(self._root, path),
            part_of_image(path),
            None if self._numbers is None else int(self._numbers[number]),
            Stamp(int(files.sizes[number]), int(files.marks[number])),
        )

    def files(self) -> Files:
        """See `Listed`: in pack order, by their paths below the folder."""
        return self._files.reordered(self._order)

    @property
    def place(self) -> Callable[[ImageInput], str]:
        """See `Source`: the file's path."""
        return operator.attrgetter("path")

    @property
    def portable(self) -> bool:
        """See `Source`: only decoding and encoding is worth another process."""
        return self.load.reencode.transforms

    def key(self, given: ImageInput) -> str:
        """See `KeyedSource`."""
        return given.key


class _InOrder(Sequence[ImageInput]):
    """Images in pack order, each made when it is its turn."""

    def __init__(self, image: Callable[[int], ImageInput], order: Sequence[int]) -> None:
        self._image, self._order = image, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> ImageInput:  # type: ignore[override]
        return self._image(self._order[place])


def pack_images(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    shard_size: int | str = "256MB",
    labels: str | os.PathLike[str] | None = None,
    resize: int | None = None,
    max_side: int | None = None,
    format: ImageFormat | None = None,
    quality: int = 90,
    keys: Keys = "path",
    **options: Unpack[PackOptions],
) -> Summary:
    """Pack a folder of images, one folder for each class or flat, into shards.

    Args:
        source: The folder. Parts: the images' suffix (`jpg`, `png`, …) and, with class folders,
            `cls`, the number of the class.
        destination: Folder or URL; it must hold nothing yet.
        shard_size: Bytes of a shard, a number or such as "256MB" (decimal).
        labels: A `.csv` (columns path and label, named in its first row) or a `.json` (one object)
            that gives each image its label, by its path below the folder, with or without suffix.
            Text becomes classes, sorted by name; integers are `cls` as they are. By default the
            class is the first folder.
        resize: Pixels of the shorter side; by default images keep their bytes.
        max_side: The most pixels of the longer side; smaller images keep their bytes.
        format: jpg, png, webp or npy, a uint8 array (height, width, 3): the most
            bytes and the least work, for data that is read many times; crops touch only their part.
        quality: Of jpg and webp, 1 to 100, where images are encoded.
        keys: "path" or "number".
        **options: Those of every pack: `shuffle`, `include`, `map`, `split`, `on_error`, `resume`,
            `workers` and more, see `ss.PackOptions`. Patterns are of paths below the folder; what
            they leave out is as though it were not there. A folder is sorted by class, so without
            `shuffle` a stream would mix next to nothing.

    Returns:
        What was done.

    Raises:
        PackError: The folder can't be packed as asked, another pack writes there, or the one to go
            on with is of other files or options.
        SampleError: An image can't be read, and `on_error` is "raise".
        UsageError: The destination is not empty, or an argument breaks its rule.
    """
    check_names(options)
    check_keys(keys)
    reencode = Reencode(format, resize, max_side, quality)
    folder = ImageFolder(
        reachable(os.fspath(source), options),
        keys=keys,
        seed=seed_of(options),
        reencode=reencode,
        globs=globs_of(options),
        labels=None if labels is None else os.fspath(labels),
    )
    return deliver(
        folder,
        destination,
        shard_size=shard_size,
        about={
            "source": os.path.abspath(source),
            **dataclasses.asdict(reencode),
            "keys": keys,
            "labels": folder.labels_crc,
        },
        **options,
    )
