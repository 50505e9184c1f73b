"""The values of a batch's parts, laid out as one block and written to it once."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.base import Form
from streamshard.errors import DamagedError
from streamshard.stream.block import Block, Column, Entry, Layout, tensor_on

ALIGNMENT = 64  # bytes: a cache line, and more than any dtype needs

Buffer = bytes | memoryview | NDArray[Any]
Allocate = Callable[[int], torch.Tensor]
Fill = Callable[[NDArray[np.uint8]], object]


@dataclass
class _Piece:
    """An entry before it has its place: what is to be written there, buffer after buffer."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    buffers: Iterable[Buffer]
    add: NDArray[np.int64] | None = None
    fill: Fill | None = None  # in place of buffers
    channels_last: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def seen(self, memory: torch.Tensor) -> torch.Tensor:
        """This entry's bytes, at the start of their storage, as its tensor."""
        return tensor_on(memory.untyped_storage(), self.dtype, 0, self.shape, self.channels_last)

    def at(self, offset: int) -> Entry:
        """The entry, once it has its place."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Entry(self.name, dtype, self.shape, offset, self.channels_last)

    def write(self, out: NDArray[np.uint8]) -> None:
        """Fill this entry's bytes of the block."""
        if self.fill is not None:
            self.fill(out)
            return
        buffers = list(self.buffers)
        if len(buffers) > 1 and len(out) < 4096 * len(buffers):
            buffers = [b"".join(buffers)]  # one copy more, but no Python for every small one
        at = 0
        for buffer in buffers:
            source = np.frombuffer(buffer, np.uint8)
            out[at : at + len(source)] = source
            at += len(source)
        if at != len(out):  # what is left would be whatever the memory held before
            raise DamagedError(f"{self.name}: {at} bytes where {len(out)} are expected")
        if self.add is not None:
            values = out.view(str(self.dtype).removeprefix("torch.")).reshape(self.shape)
            values += self.add.astype(values.dtype, copy=False)


@dataclass
class BlockBuilder:
    """Collects the tensors of a batch, then lays out and writes the block."""

    _pieces: list[_Piece] = field(default_factory=list)
    _columns: list[Column] = field(default_factory=list)

    def piece(
        self,
        name: str,
        dtype: torch.dtype,
        shape: Sequence[int],
        buffers: Iterable[Buffer],
        add: NDArray[np.int64] | None = None,
    ) -> int:
        """Add an entry and return its number.

        Args:
            name: Unique in the block.
            dtype: Of the tensor.
            shape: Of the tensor.
            buffers: Its bytes, in order.
            add: Added to the values once they are written, broadcast to the shape.
        """
        self._pieces.append(_Piece(name, dtype, tuple(shape), buffers, add))
        return len(self._pieces) - 1

    def column(self, name: str, kind: str, entries: Iterable[int], extra: Any = None) -> None:
        """Add a part made of entries."""
        self._columns.append(Column(name, kind, tuple(entries), extra))

    def array(self, name: str, array: NDArray[Any]) -> int:
        """Add a numpy array as an entry."""
        return self.piece(name, torch.from_numpy(array[:0]).dtype, array.shape, [array])

    def tensor(self, name: str, array: NDArray[Any]) -> None:
        """Add a part that is one tensor."""
        self.column(name, "tensor", [self.array(name, array)])

    def stacked(self, name: str, form: Form, tensors: Sequence[torch.Tensor]) -> None:
        """Add a part whose samples' tensors, all of one form, are stacked."""
        self.filled(name, form, len(tensors), partial(_stack, tensors))

    def filled(
        self, name: str, form: Form, count: int, fill: Callable[[torch.Tensor], object]
    ) -> None:
        """Add a part whose samples, of one form, are written when their place is there.

        Args:
            name: Of the part.
            form: Of each sample.
            count: Samples.
            fill: Writes to (count, *form.shape), contiguous or channels last as the form says.
        """
        number = self.piece(name, form.dtype, (count, *form.shape), [])
        piece = self._pieces[number]
        piece.channels_last = form.channels_last
        if piece.nbytes:
            piece.fill = lambda out: fill(piece.seen(torch.from_numpy(out)))
        self.column(name, "tensor", [number])

    def ragged(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Add a part that is a list of tensors."""
        self.column(name, "ragged", self.one_by_one(name, tensors))

    def one_by_one(self, name: str, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Add an entry for each tensor, and return their numbers."""
        return [
            self.piece(f"{name}/{row}", tensor.dtype, tensor.shape, [_bytes_of(tensor)])
            for row, tensor in enumerate(tensors)
        ]

    def strings(self, name: str, kind: str, values: Sequence[bytes]) -> None:
        """Add a part that is a list of `text` or `bytes`."""
        self.column(name, kind, self.joined(name, values))

    def joined(self, name: str, values: Sequence[bytes]) -> list[int]:
        """Add an entry of bytes one behind another and one of their ends; return their numbers."""
        ends = np.cumsum([len(value) for value in values], dtype=np.int64)
        data = self.piece(name, torch.uint8, (int(ends[-1]) if len(ends) else 0,), values)
        return [data, self.array(f"{name}/ends", ends)]

    def filled_strings(self, name: str, sizes: NDArray[np.int64], fill: Fill) -> None:
        """Add a part that is a list of `bytes`, of these sizes, which fill their own place."""
        ends = np.cumsum(sizes, dtype=np.int64)
        data = self.piece(name, torch.uint8, (int(ends[-1]) if len(ends) else 0,), [])
        self._pieces[data].fill = fill
        self.column(name, "bytes", [data, self.array(f"{name}/ends", ends)])

    def objects(self, name: str, values: Sequence[Any]) -> None:
        """Add a part that is a list of Python objects, pickled here and unpickled by our own."""
        self._pickled(name, "object", list(values))

    def one(self, name: str, value: Any) -> None:
        """Add a part that is one Python object, which has a `to(device)`; pickled likewise."""
        self._pickled(name, "one", value)

    def _pickled(self, name: str, kind: str, value: Any) -> None:
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        self.column(name, kind, [self.piece(name, torch.uint8, (len(data),), [data])])

    def finish(
        self,
        allocate: Allocate,
        parts: str | tuple[str, ...] | None,
        skipped: tuple[str, ...] = (),
    ) -> Block:
        """Lay out the block, get the memory for it, and write it."""
        first = {number for column in self._columns for number in column.moving}
        second = {number for column in self._columns for number in column.passing}
        last = {column.entries[0] for column in self._columns if column.kind == "bytes"}
        rest = [n for n in range(len(self._pieces)) if n not in first | second | last]
        offsets: dict[int, int] = {}
        moving = self._place(offsets, sorted(first), 0)
        host = self._place(offsets, sorted(second), moving)
        strings = self._place(offsets, rest, host)
        end = self._place(offsets, sorted(last), strings)
        entries = tuple(piece.at(offsets[number]) for number, piece in enumerate(self._pieces))
        memory = allocate(end)
        out = memory.numpy()
        for piece, entry in zip(self._pieces, entries, strict=True):
            piece.write(out[entry.offset : entry.offset + piece.nbytes])
        columns = tuple(self._columns)
        return Block(memory, Layout(end, moving, host, strings, entries, columns, parts, skipped))

    def _place(self, offsets: dict[int, int], numbers: Iterable[int], start: int) -> int:
        """Place some entries, one after another; the aligned end of them."""
        for number in numbers:
            offsets[number] = start
            start += -(-self._pieces[number].nbytes // ALIGNMENT) * ALIGNMENT
        return start


def _stack(tensors: Sequence[torch.Tensor], rows: torch.Tensor) -> None:
    """Write tensors of one form one after another, all by one call of torch."""
    with torch.no_grad():
        torch.stack(list(tensors), out=rows)


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A tensor's bytes in its own order."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)
