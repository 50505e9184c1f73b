"""A batch in one piece of memory: laid out, written once, and seen as tensors where it arrives.

A block is one contiguous uint8 tensor and a layout that says which tensor begins where. It crosses
a process boundary as one descriptor, is pinned by one call and copied to a device by one copy.
Keys, text and bytes travel in it too, so that messages between processes stay small.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.base import Form
from streamshard.errors import DamagedError

ALIGNMENT = 64  # bytes: a cache line, and more than any dtype needs
_TENSORS = ("tensor", "ragged", "graph")  # kinds whose entries go where the batch goes
ENCODED = "encoded"  # a kind whose first entry is decoded from where it lies

Buffer = bytes | memoryview | NDArray[Any]
Allocate = Callable[[int], torch.Tensor]
Fill = Callable[[NDArray[np.uint8]], object]


class Entry(NamedTuple):
    """One tensor of a block.

    Attributes:
        name: Unique in the block.
        dtype: torch's name of it.
        shape: Of the tensor.
        offset: Bytes from the start of the block; a multiple of 64.
        channels_last: Whether, of (samples, channels, height, width), channels vary fastest.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    channels_last: bool = False


class Column(NamedTuple):
    """One part of a batch: which entries it is made of, and how.

    Attributes:
        name: Of the part.
        kind: "tensor", "ragged" (a list of tensors), "text", "bytes", "object" (a list of any),
            "one" (a single object that can be moved), "graph" or "encoded" (`stream/encoded.py`).
        entries: Entries, by number.
        extra: What the kind needs besides; of "encoded", how many of its entries stay.
    """

    name: str
    kind: str
    entries: tuple[int, ...]
    extra: Any = None

    @property
    def moving(self) -> tuple[int, ...]:
        """The entries that go where the batch goes."""
        if self.kind == ENCODED:
            return self.entries[self.extra :]
        return self.entries if self.kind in _TENSORS else ()

    @property
    def passing(self) -> tuple[int, ...]:
        """The entries that are read once, as soon as the block has arrived."""
        return self.entries[:1] if self.kind == ENCODED else ()


@dataclass(frozen=True)
class Layout:
    """Where everything in a block lies.

    Attributes:
        nbytes: Of the block.
        moving: Byte up to which lies what goes where the batch goes. After it, up to `host`, lies
            what is read once on arrival.
        host: Byte from which on lies what stays on the host, wherever the batch goes: text, and
            the tables by which a batch is taken apart. No part is a tensor there.
        strings: Byte from which on lie the values of `bytes` parts, which may be large.
        entries: The tensors.
        columns: The parts of the batch.
        parts: What the user asked for: None for a dict, a name for the value alone, or a tuple.
        skipped: What was left out of this batch, and why.
    """

    nbytes: int
    moving: int
    host: int
    strings: int
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    parts: str | tuple[str, ...] | None
    skipped: tuple[str, ...] = ()


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


class Block:
    """One contiguous piece of memory and its layout.

    Attributes:
        memory: (nbytes,) uint8, at the start of its storage.
        layout: Where everything in it lies.
    """

    def __init__(
        self,
        memory: torch.Tensor,
        layout: Layout,
        host: torch.Tensor | None = None,
        strings: Mapping[str, Sequence[bytes]] | None = None,
    ) -> None:
        """See the attributes.

        Args:
            memory: Of the block.
            layout: Of the block.
            host: What stays on the host, where it is not to be read in `memory`, but for
            strings: The values of `bytes` parts.
        """
        self.memory = memory
        self.layout = layout
        self._host, self._strings = host, strings

    @property
    def moving(self) -> torch.Tensor:
        """What of the memory goes where the batch goes."""
        return self.memory[: self.layout.moving]

    def lent(self) -> Block:
        """This block in memory that will be written again.

        What stays on the host is copied. So a copy on a device is all that its batch is made of.
        """
        return Block(self.memory, self.layout, *self._on_host())

    def _on_host(self) -> tuple[torch.Tensor, Mapping[str, Sequence[bytes]]]:
        """A copy of what stays on the host."""
        if self._host is not None and self._strings is not None:
            return self._host, self._strings
        columns = (column for column in self.layout.columns if column.kind == "bytes")
        strings = {column.name: self.strings(column) for column in columns}
        return self.memory[self.layout.host : self.layout.strings].clone(), strings

    def copied(self, memory: torch.Tensor) -> Block:
        """This block in a copy on the host of its memory, or of what of it moves."""
        is_whole = len(memory) == self.layout.nbytes
        return Block(memory, self.layout, *((None, None) if is_whole else self._on_host()))

    def left_behind(self) -> Block:
        """What is needed of this block where its batch lies in a copy on a device."""
        return Block(torch.empty(0, dtype=torch.uint8), self.layout, *self._on_host())

    def strings(self, column: Column) -> list[bytes]:
        """The values of a `bytes` part, each copied once."""
        if self._strings is not None:
            return list(self._strings[column.name])
        data, ends = (self.view(number) for number in column.entries)
        memory, at = memoryview(data.numpy()), ends.tolist()
        return [memory[a:b].tobytes() for a, b in zip([0, *at], at, strict=False)]

    def view(self, number: int, device_memory: torch.Tensor | None = None) -> torch.Tensor:
        """One entry as a tensor of its own on the block's storage, here or on a device.

        Not a view of `memory`: views share a version counter, and autograd's checks for changes in
        place would take a change of one part for a change of all.
        """
        entry = self.layout.entries[number]
        memory, offset = self.memory, entry.offset
        if device_memory is not None:
            memory = device_memory
        elif self._host is not None and offset >= self.layout.host:
            memory, offset = self._host, offset - self.layout.host
        dtype: torch.dtype = getattr(torch, entry.dtype)
        storage = memory.untyped_storage()
        return tensor_on(storage, dtype, offset, entry.shape, entry.channels_last)


def tensor_on(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: int,
    shape: Sequence[int],
    channels_last: bool = False,
) -> torch.Tensor:
    """A tensor on a storage, `offset` bytes from its start, contiguous or channels last."""
    tensor = torch.empty(0, dtype=dtype, device=storage.device)
    strides: list[Sequence[int]] = []  # without them it is contiguous
    if channels_last:
        _, channels, height, width = shape
        strides = [(height * width * channels, 1, width * channels, channels)]
    tensor.set_(storage, offset // dtype.itemsize, shape, *strides)
    return tensor


def plain_memory(nbytes: int) -> torch.Tensor:
    """Memory of this process."""
    return torch.empty(nbytes, dtype=torch.uint8)


def shared_memory(nbytes: int) -> torch.Tensor:
    """Memory that a DataLoader's worker can hand over without a copy."""
    storage = torch.UntypedStorage._new_shared(max(nbytes, 1))  # type: ignore[no-untyped-call]
    return tensor_on(storage, torch.uint8, 0, (nbytes,))
