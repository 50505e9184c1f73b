"""What the training loop gets: a block seen as a dict, a tuple, or one value."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Self

import torch

from streamshard.stream.block import Block, Column
from streamshard.stream.graphs import graph_batch


class _OnBlock:
    """What dict and tuple batches share: they are pinned, moved and pickled as one block."""

    block: Block
    _device_memory: torch.Tensor | None

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was left out of this batch because of an error, and why."""
        return self.block.layout.skipped

    def pin_memory(self) -> Self:
        """The same batch in pinned memory, by one call for all its tensors."""
        batch: Self = _on(type(self), Block(self.block.memory.pin_memory(), self.block.layout))
        return batch

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on a device, by one copy for all its tensors."""
        memory = self.block.memory.to(device, non_blocking=non_blocking)
        batch: Self = _on(type(self), self.block, memory)
        return batch

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _on, (type(self), self.block, self._device_memory)


class Batch(_OnBlock, dict[str, Any]):
    """A batch as a dict from part to value, with `"__key__"`, a list of str.

    An image part is a (samples, 3, height, width) uint8 tensor, `cls` a (samples,) int64 tensor,
    text and bytes are lists, a graph part is a PyG `Batch`.
    """


class BatchTuple(_OnBlock, tuple[Any, ...]):
    """A batch as a tuple, in the order of the `parts` asked for."""


def _on(kind: type[Any], block: Block, device_memory: torch.Tensor | None = None) -> Any:
    """A batch of this kind over a block; its tensors on a device where memory there is given."""
    values = {column.name: _value(block, column, device_memory) for column in block.layout.columns}
    parts = block.layout.parts
    batch = kind(values) if kind is Batch else kind(values[part] for part in parts or ())
    batch.block, batch._device_memory = block, device_memory
    return batch


def batch_of(block: Block, device_memory: torch.Tensor | None = None) -> Any:
    """What the user asked a block to be seen as.

    Args:
        block: The block, in this process's memory.
        device_memory: A copy of `block.memory` on the device where the tensors are to be.
    """
    parts = block.layout.parts
    if isinstance(parts, str):
        column = next(column for column in block.layout.columns if column.name == parts)
        return _value(block, column, device_memory)
    return _on(Batch if parts is None else BatchTuple, block, device_memory)


def _value(block: Block, column: Column, memory: torch.Tensor | None) -> Any:
    if column.kind == "tensor":
        return block.view(column.entries[0], memory)
    if column.kind == "ragged":
        return [block.view(number, memory) for number in column.entries]
    if column.kind == "graph":
        return graph_batch(block, column, memory)
    data = block.view(column.entries[0]).numpy().tobytes()
    if column.kind == "object":
        return pickle.loads(data)  # made by our own worker, never read from a dataset
    ends = block.view(column.entries[1]).tolist()
    values = [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    return [value.decode() for value in values] if column.kind == "text" else values
