"""What the training loop gets: a block seen as a dict, a tuple, or one value."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Self, cast

import torch

from streamshard.stream.block import Block, Column
from streamshard.stream.graph_batch import graph_batch


class _OnBlock:
    """What dict and tuple batches share: they are pinned, moved and pickled as one block."""

    block: Block
    _device_memory: torch.Tensor | None

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was left out of this batch because of an error, and why."""
        return self.block.layout.skipped

    @property
    def _memory(self) -> torch.Tensor:
        """What the tensors lie in."""
        return self.block.memory if self._device_memory is None else self._device_memory

    def pin_memory(self) -> Self:
        """The same batch in pinned memory, by one call for all its tensors."""
        return self._with_changes(self._in(self._memory.pin_memory()), "pin_memory")

    def clone(self) -> Self:
        """The same batch in memory of its own, by one copy for all its tensors."""
        return self._with_changes(self._in(self._memory.clone()), "clone")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on a device, by one copy for all its tensors."""
        memory = self._memory.to(device, non_blocking=non_blocking)
        return self._with_changes(self._in(memory), "to", device, non_blocking=non_blocking)

    def _in(self, memory: torch.Tensor) -> Self:
        """The batch as it was made, in a copy of its memory."""
        if memory.device.type == "cpu" and memory is not self.block.memory:
            return cast("Self", _on(type(self), Block(memory, self.block.layout)))
        return cast("Self", _on(type(self), self.block, memory))

    def _with_changes(self, moved: Any, how: str, *args: Any, **options: Any) -> Self:
        """What was put into a batch after it was made goes along, each by itself."""
        changed = {
            name: getattr(value, how)(*args, **options) if hasattr(value, how) else value
            for name, value in self._changed().items()
        }
        batch: Self = _with(moved, changed, self._removed())
        return batch

    def _changed(self) -> dict[str, Any]:
        return {}

    def _removed(self) -> set[str]:
        return set()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restored, (
            type(self),
            self.block,
            self._device_memory,
            self._changed(),
            self._removed(),
        )


class Batch(_OnBlock, dict[str, Any]):
    """A batch as a dict from part to value, with `"__key__"`, a list of str.

    An image part is a (samples, 3, height, width) uint8 tensor, `cls` a (samples,) int64 tensor,
    text and bytes are lists, a graph part is a PyG `Batch`.
    """

    made: dict[str, Any]  # what the block gave, to tell what was changed since

    def _changed(self) -> dict[str, Any]:
        return {name: value for name, value in self.items() if self.made.get(name) is not value}

    def _removed(self) -> set[str]:
        return set(self.made) - set(self)


class BatchTuple(_OnBlock, tuple[Any, ...]):
    """A batch as a tuple, in the order of the `parts` asked for."""


def _on(kind: type[Any], block: Block, device_memory: torch.Tensor | None = None) -> Any:
    """A batch of this kind over a block; its tensors on a device where memory there is given."""
    values = {column.name: _value(block, column, device_memory) for column in block.layout.columns}
    parts = block.layout.parts
    batch = kind(values) if kind is Batch else kind(values[part] for part in parts or ())
    batch.block, batch._device_memory = block, device_memory
    if kind is Batch:
        batch.made = values
    return batch


def _restored(
    kind: type[Any],
    block: Block,
    device_memory: torch.Tensor | None,
    changed: dict[str, Any],
    removed: set[str],
) -> Any:
    """A batch that was pickled."""
    return _with(_on(kind, block, device_memory), changed, removed)


def _with(batch: Any, changed: dict[str, Any], removed: set[str]) -> Any:
    """A batch as its user had changed it; a tuple can't have been."""
    for name, value in changed.items():
        batch[name] = value
    for name in removed:
        del batch[name]
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
    return (
        [value.decode("utf-8", "surrogateescape") for value in values]
        if column.kind == "text"
        else values
    )
