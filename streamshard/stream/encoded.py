"""Images that are decoded where the batch arrives: files travel, and what to keep of each.

In a block such a part is its files one behind another, what each crop keeps, decided by the
sample's own randomness, where each lies, for messages, and the pixels of those that were decoded
already, since only a CPU can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from streamshard.codec.base import Form
from streamshard.codec.framing import Box, Framing, cut_out
from streamshard.codec.picture import opened
from streamshard.errors import SampleError
from streamshard.stream.block import ENCODED, Block, Column
from streamshard.stream.builder import BlockBuilder

# Files as (bytes,) uint8 tensors on the host, and a device, to (3, height, width) uint8 RGB there.
Decode = Callable[[list[torch.Tensor], torch.device], Sequence[torch.Tensor]]
Size = tuple[int, int]

_STAYING = 5  # entries of a column that stay: files, ends, framings, places, ends; then pixels
_AT_ONCE = 2**28  # bytes of decoded images that there may be at once, unless one alone has more


class Encoded(NamedTuple):
    """One image on its way.

    Attributes:
        data: The file; empty where there are pixels.
        full: Its height and width.
        framing: What is kept of it.
        pixels: Of an image that only a CPU can decode: what it is to be, (3, height, width) uint8.
    """

    data: bytes
    full: Size
    framing: Framing
    pixels: torch.Tensor | None = None


class Decoded(NamedTuple):
    """A part of a batch that has arrived.

    Attributes:
        images: (batch, 3, height, width) uint8, or a list where sizes differ.
        by_cpu: How many of them a CPU decoded.
    """

    images: torch.Tensor | list[torch.Tensor]
    by_cpu: int


def add_encoded(
    builder: BlockBuilder, name: str, images: Sequence[Encoded], places: Sequence[str]
) -> None:
    """Add a part of images that are not decoded yet.

    Args:
        builder: Of the block.
        name: Of the part.
        images: The images.
        places: Where each lies, for messages.
    """
    numbers = builder.joined(name, [image.data for image in images])
    rows = [(*image.full, *image.framing.box, *image.framing.size, *image.framing[2:])
            for image in images]  # fmt: skip
    numbers.append(builder.array(f"{name}/framings", np.array(rows, np.float64).reshape(-1, 10)))
    numbers += builder.joined(f"{name}/places", [p.encode("utf-8", "replace") for p in places])
    pixels = [image.pixels for image in images if image.pixels is not None]
    numbers += builder.one_by_one(f"{name}/pixels", pixels)
    builder.column(name, ENCODED, numbers, _STAYING)


def decode_column(
    block: Block,
    column: Column,
    memory: torch.Tensor | None,
    form: Form | None,
    decode: Decode,
) -> Decoded:
    """Decode a part on the device where its batch has arrived.

    Args:
        block: The block, in memory that is not written meanwhile.
        column: The part.
        memory: The block's copy on a device, or None where the batch stays on the host.
        form: What every image is to be; None where sizes differ.
        decode: Decodes some files. Where it raises a RuntimeError they are tried one by one, and
            those that it can't do are decoded here.

    Raises:
        SampleError: An image can't be decoded at all.
    """
    device = torch.device("cpu") if memory is None else memory.device
    files = _files(block, column)
    images = _Images(len(files), form, device)
    ready = iter(column.moving)
    waiting = []
    for row, file in enumerate(files):
        if len(file.data):
            waiting.append(row)
        else:
            images.put(row, block.view(next(ready), memory))
    by_cpu = len(files) - len(waiting)
    for rows in _chunks(waiting, files):
        some = [files[row] for row in rows]
        for row, (pixels, is_ours) in zip(rows, _decoded(some, device, decode), strict=True):
            images.put(row, cut_out(pixels[None], files[row].framing))
            by_cpu += is_ours
    return Decoded(images.value, by_cpu)


class _File(NamedTuple):
    """One image as it lies in a block.

    Attributes:
        data: (bytes,) uint8, in the block.
        full: Height and width.
        framing: What is kept.
        place: Where it lies in the dataset.
    """

    data: torch.Tensor
    full: Size
    framing: Framing
    place: str


class _Images:
    """The images of a batch, one tensor where all have one size."""

    def __init__(self, count: int, form: Form | None, device: torch.device) -> None:
        self.value: Any = [None] * count
        if form is not None:
            lies = torch.channels_last if form.channels_last else torch.contiguous_format
            self.value = torch.empty(
                (count, *form.shape), dtype=form.dtype, device=device, memory_format=lies
            )

    def put(self, row: int, image: torch.Tensor) -> None:
        """Put an image, also one of rounded numbers in another dtype, in its place."""
        if isinstance(self.value, torch.Tensor):
            self.value[row].copy_(image)
        else:
            self.value[row] = image.to(torch.uint8, copy=True)


def _files(block: Block, column: Column) -> list[_File]:
    data, ends, table, places, place_ends = (block.view(n) for n in column.entries[:_STAYING])
    text = places.numpy().tobytes()
    names = [text[a:b].decode("utf-8") for a, b in _spans(place_ends)]
    framings = [
        ((int(row[0]), int(row[1])),
         Framing(Box(*row[2:6]), (int(row[6]), int(row[7])), bool(row[8]), bool(row[9])))
        for row in table.tolist()
    ]  # fmt: skip
    spans = _spans(ends)
    return [
        _File(data[a:b], full, framing, name)
        for (a, b), (full, framing), name in zip(spans, framings, names, strict=True)
    ]


def _spans(ends: torch.Tensor) -> list[tuple[int, int]]:
    last = ends.tolist()
    return list(zip([0, *last], last, strict=False))


def _chunks(rows: Sequence[int], files: Sequence[_File]) -> Iterator[list[int]]:
    """Rows in their order, as many at a time as may be decoded at once."""
    chunk: list[int] = []
    total = 0
    for row in rows:
        nbytes = 3 * files[row].full[0] * files[row].full[1]
        if chunk and total + nbytes > _AT_ONCE:
            yield chunk
            chunk, total = [], 0
        chunk.append(row)
        total += nbytes
    if chunk:
        yield chunk


def _decoded(
    files: Sequence[_File], device: torch.device, decode: Decode
) -> Iterator[tuple[torch.Tensor, bool]]:
    """The pixels of each file at full size, and whether it was decoded here after all."""
    try:
        found = decode([file.data for file in files], device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # it says that of all where it is true of one
        found = []
    for number, file in enumerate(files):
        pixels = found[number] if found else _tried(file, device, decode)
        if pixels is not None and tuple(pixels.shape) == (3, *file.full):
            yield pixels, False
        else:
            yield _by_cpu(file).to(device), True


def _tried(file: _File, device: torch.device, decode: Decode) -> torch.Tensor | None:
    """One file by itself; None where it can't be decoded so."""
    try:
        return decode([file.data], device)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None


def _by_cpu(file: _File) -> torch.Tensor:
    try:
        pixels = opened(file.data.numpy().tobytes()).decode()
    except ValueError as error:
        raise SampleError(f"{file.place}: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
