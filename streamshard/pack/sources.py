"""Where samples come from: a folder of images, an iterable of graphs.

A source is a sequence of inputs, small and picklable, and a function that turns one input into a
sample, in whichever process. What it finds while listing (class names, odd files) it tells.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch

from streamshard.codec.base import Codec
from streamshard.codec.crop import Resize
from streamshard.codec.graph import NODES, GraphCodec
from streamshard.codec.image import decode_pixels, encode_pixels
from streamshard.codec.registry import IMAGE_SUFFIXES
from streamshard.errors import PackError, SampleError, UsageError
from streamshard.pack.encode import KEY, escape_key
from streamshard.plan.permute import key_of, permute

if TYPE_CHECKING:
    from torch_geometric.data import Data

Sample = dict[str, Any]
Keys = Literal["path", "number"]
ImageFormat = Literal["jpg", "png", "webp", "npy"]


class Source(Protocol):
    """What `pack` asks of a source."""

    notes: list[str]

    @property
    def classes(self) -> Sequence[str] | None:
        """Class names by `cls`, or None."""

    @property
    def codecs(self) -> Mapping[str, Codec]:
        """Codecs by part, where the suffix's own is not wanted."""

    def inputs(self) -> Iterable[Any]:
        """The inputs in the order in which they are packed; sized where that is known."""

    @property
    def load(self) -> Callable[[Any], Sample]:
        """Turns one input into a sample; picklable where `portable`."""

    @property
    def portable(self) -> bool:
        """Whether `load` is worth sending to other processes."""


class ImageInput(NamedTuple):
    """One image file and what its place tells."""

    key: str
    path: str
    part: str
    label: int | None


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
            SampleError: The file is gone, unreadable, or not a whole image.
        """
        try:
            data = Path(image.path).read_bytes()
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
        escaped = sum("%" in item.key for item in self._inputs)
        if escaped:
            self.notes.append(f"{escaped} keys had characters that were escaped as %XX")
        self._order = _order(len(paths), seed)

    def _list(self, root: str) -> list[Path]:
        if not os.path.isdir(root):
            what = "is a file, not a folder" if os.path.exists(root) else "no such folder"
            raise PackError(f"{root}: {what}")
        images, others = [], 0
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = Path(folder).relative_to(root)
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if name.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                    images.append(below / name)
                else:
                    others += 1
        if not images:
            raise PackError(
                f"{root}: no images (files ending in .{', .'.join(IMAGE_SUFFIXES)}) there, "
                f"{others} other files"
            )
        if others:
            self.notes.append(f"{others} files that are no images were left out")
        return sorted(images, key=lambda path: path.parts)

    def inputs(self) -> Sequence[ImageInput]:
        """See `Source`."""
        return [self._inputs[number] for number in self._order]

    @property
    def portable(self) -> bool:
        """See `Source`: only decoding and encoding is worth another process."""
        return self.load.transforms


def _part_of_image(path: Path) -> str:
    suffix = path.suffix[1:].lower()
    return "jpg" if suffix == "jpeg" else suffix


def _key_of(path: Path) -> str:
    return escape_key(str(path.with_suffix("")))


def _order(length: int, seed: int | None) -> Sequence[int]:
    """A permutation of 0..length-1, or that range itself."""
    if seed is None:
        return range(length)
    numbers = np.arange(length, dtype=np.int64)
    order: list[int] = permute(numbers, np.array([length], np.int64), key_of(seed)).tolist()
    return order


class Graphs:
    """An iterable of PyG `Data`.

    Attributes:
        classes: None.
        codecs: The graph codec with what it is to allow.
        notes: What was found while listing.
    """

    classes = None
    portable = False  # the objects are in this process already

    def __init__(
        self, graphs: Iterable[Data], *, seed: int | None, allow_empty: bool, allow_nan: bool
    ) -> None:
        """Take the graphs.

        Args:
            graphs: Anything that can be iterated; shuffled only where it has a length and can be
                indexed, since a stream would have to be held in memory for that.
            seed: Of the order in which samples are packed; None keeps the order.
            allow_empty: Take graphs without nodes.
            allow_nan: Take NaN and infinity.
        """
        self.codecs = {"graph": GraphCodec(allow_empty=allow_empty, allow_nan=allow_nan)}
        self.notes: list[str] = []
        self._graphs, self._seed = graphs, seed
        if seed is not None and not _is_indexed(graphs):
            self.notes.append("not shuffled: the source can only be read once, from the front")

    def inputs(self) -> Iterable[tuple[str, Data]]:
        """See `Source`: keys and graphs."""
        if not _is_indexed(self._graphs):
            return ((f"{number:09d}", graph) for number, graph in enumerate(self._graphs))
        return _IndexedGraphs(self._graphs, _order(len(self._graphs), self._seed))  # type: ignore[arg-type]

    @staticmethod
    def load(keyed: tuple[str, Data]) -> Sample:
        """See `Source`: tensors become the part `graph`, everything else the part `json`."""
        key, graph = keyed
        store = getattr(graph, "_store", None)
        if store is None:
            raise SampleError(f"graph {key}: {type(graph).__name__} is not a PyG Data")
        rest = {
            name: value
            for name, value in dict(store).items()
            if name != NODES and not isinstance(value, torch.Tensor)
        }
        if not rest:
            return {KEY: key, "graph": graph}
        tensors = graph.clone()
        for name in rest:
            del tensors[name]
        return {KEY: key, "graph": tensors, "json": rest}


def _is_indexed(graphs: Iterable[Any]) -> bool:
    return isinstance(graphs, Sized) and hasattr(graphs, "__getitem__")


class _IndexedGraphs:
    """Keys and graphs of a sequence in another order, each taken when it is its turn."""

    def __init__(self, graphs: Sequence[Data], order: Sequence[int]) -> None:
        self._graphs, self._order = graphs, order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[str, Data]]:
        width = max(6, len(str(len(self._order) - 1)))
        return ((f"{number:0{width}d}", self._graphs[number]) for number in self._order)


def graphs_of(spec: str) -> Iterable[Any]:
    """What a spec on the command line stands for.

    Args:
        spec: `module:callable` or `file.py:callable`; the current folder is looked in too. The
            callable takes nothing and returns an iterable of `Data`.

    Raises:
        UsageError: The spec is of another kind, or does not lead to a callable.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{spec!r} is not a graph source; module:callable or file.py:callable is")
    function = getattr(_module(place), name, None)
    if not callable(function):
        raise UsageError(f"{spec}: there is no callable {name!r} in {place}")
    graphs = function()
    if not isinstance(graphs, Iterable):
        raise UsageError(f"{spec} returned a {type(graphs).__name__}, not an iterable of graphs")
    return graphs


def _module(place: str) -> Any:
    if place.endswith(".py"):
        if not os.path.isfile(place):
            raise UsageError(f"{place}: no such file")
        module_spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert module_spec
        assert module_spec.loader
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        return module
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise UsageError(f"{place}: no module named {error.name!r}") from None
    finally:
        sys.path.remove(os.getcwd())


def chunks(inputs: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` inputs."""
    iterator = iter(inputs)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
