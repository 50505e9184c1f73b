"""What the training loop gets: a block seen as a dict, a tuple, or one value."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch

from streamshard.stream.block import ENCODED, Block, Column
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
            return cast("Self", _on(type(self), self.block.copied(memory)))
        return cast("Self", _on(type(self), self.block.left_behind(), memory))

    def _with_changes(self, moved: Any, how: str, *args: Any, **options: Any) -> Self:
        """What was put into a batch after it was made goes along, each by itself."""
        changed = {
            name: getattr(value, how)(*args, **options) if hasattr(value, how) else value
            for name, value in self._changed().items()
        }
        batch: Self = _with(moved, changed, self._removed())
        return batch

    def _named(self) -> dict[str, Any]:
        raise NotImplementedError

    def _changed(self) -> dict[str, Any]:
        """What is not, or not any more, as the block gives it: put in, or changed where it is."""
        made = _values(self.block, self._device_memory)
        return {
            name: value
            for name, value in self._named().items()
            if name not in made or not _is_same(value, made[name])
        }

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

    def _named(self) -> dict[str, Any]:
        return dict(self)

    def _removed(self) -> set[str]:
        return {column.name for column in self.block.layout.columns} - set(self)


class BatchTuple(_OnBlock, tuple[Any, ...]):
    """A batch as a tuple, in the order of the `parts` asked for."""

    def _named(self) -> dict[str, Any]:
        return dict(zip(self.block.layout.parts or (), self, strict=True))


def _values(block: Block, memory: torch.Tensor | None) -> dict[str, Any]:
    return {column.name: _value(block, column, memory) for column in block.layout.columns}


def _is_same(value: Any, made: Any) -> bool:
    """Whether a value still is what the block gives: the same memory, seen the same way."""
    if isinstance(made, torch.Tensor):
        return isinstance(value, torch.Tensor) and _seen(value) == _seen(made)
    if isinstance(made, list):
        alike = isinstance(value, list) and len(value) == len(made)
        return alike and all(map(_is_same, value, made))
    if hasattr(made, "stores"):
        return hasattr(value, "stores") and _is_same_graph(value, made)
    return type(value) is type(made) and isinstance(made, str | bytes) and value == made


def _seen(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _is_same_graph(value: Any, made: Any) -> bool:
    stores, others = ({store._key: dict(store) for store in one.stores} for one in (value, made))
    return stores.keys() == others.keys() and all(
        stores[key].keys() == others[key].keys()
        and all(
            _is_same(field, others[key][name])
            for name, field in stores[key].items()
            if isinstance(field, torch.Tensor)
        )
        for key in stores
    )


def _on(kind: type[Any], block: Block, device_memory: torch.Tensor | None = None) -> Any:
    """A batch of this kind over a block; its tensors on a device where memory there is given."""
    values, parts = _values(block, device_memory), block.layout.parts
    batch = kind(values) if kind is Batch else kind(values[part] for part in parts or ())
    batch.block, batch._device_memory = block, device_memory
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
    """A batch as its user had changed it; of a tuple only what its parts are made of."""
    if changed and isinstance(batch, BatchTuple):
        tuple_ = BatchTuple((batch._named() | changed).values())
        tuple_.block, tuple_._device_memory = batch.block, batch._device_memory
        return tuple_
    for name, value in changed.items():
        batch[name] = value
    for name in removed:
        del batch[name]
    return batch


def with_values(batch: Any, values: Mapping[str, Any]) -> Any:
    """A `Batch` or `BatchTuple` with other values of some parts."""
    return _with(batch, dict(values), set())


def batch_of(block: Block, device_memory: torch.Tensor | None = None) -> Any:
    """What the user asked a block to be seen as.

    Args:
        block: The block, in this process's memory.
        device_memory: A copy of `block.memory` on the device where the tensors are to be.
    """
    if device_memory is not None:
        block = block.left_behind()
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
    if column.kind == ENCODED:
        return None  # decoded by whoever knows how, and put in
    if column.kind == "bytes":
        return block.strings(column)
    data = block.view(column.entries[0]).numpy().tobytes()
    if column.kind in ("object", "one"):
        value = pickle.loads(data)  # made by our own worker, never read from a dataset
        is_here = column.kind == "object" or memory is None
        return value if is_here else value.to(memory.device)  # type: ignore[union-attr]
    ends = block.view(column.entries[1]).tolist()
    values = (data[a:b] for a, b in zip([0, *ends], ends, strict=False))
    return [value.decode("utf-8", "surrogateescape") for value in values]
