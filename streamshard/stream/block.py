"""A batch in one piece of memory, seen as tensors where it arrives.

A block is one contiguous uint8 tensor and a layout that says which tensor begins where. It crosses
a process boundary as one descriptor, is pinned by one call and copied to a device by one copy.
Keys, text and bytes travel in it too, so that messages between processes stay small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_TENSORS = ("tensor", "ragged", "graph")  # kinds whose entries go where the batch goes
ENCODED = "encoded"  # a kind whose first entry is decoded from where it lies


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
