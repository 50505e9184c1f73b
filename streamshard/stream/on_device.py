"""What becomes of a block where it has arrived: decoded, seen as a batch, and worked on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from streamshard.errors import UsageError
from streamshard.stream.batch import batch_of, with_values
from streamshard.stream.block import ENCODED, Block
from streamshard.stream.encoded import Decode, decode_column
from streamshard.stream.gpu_decode import GpuDecode
from streamshard.stream.source import Source

# Of the whole batch, or by part of that part's value.
OnDevice = Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]]


class Arrival:
    """Turns blocks into batches where they are used.

    Attributes:
        by_cpu: Images so far that a CPU decoded in place of a GPU.
    """

    def __init__(
        self,
        decoders: Mapping[str, GpuDecode],
        on_device: OnDevice | None,
        device: torch.device | None,
    ) -> None:
        """Check what can be checked before there is a batch.

        Args:
            decoders: By part, of those that arrive encoded.
            on_device: What is done to every batch after that.
            device: Where batches will be.

        Raises:
            UsageError: An argument breaks its rule, or images can't be decoded there.
        """
        steps = on_device.values() if isinstance(on_device, Mapping) else [on_device]
        if on_device is not None and not all(map(callable, steps)):
            raise UsageError(
                f"on_device is {on_device!r}; a function of the batch, or a dict from part to a "
                "function of its value, is wanted"
            )
        self._decoders = {
            part: (decoder, decoder.check(part, device)) for part, decoder in decoders.items()
        }
        self._on_device = on_device
        self.by_cpu = 0

    def __call__(self, block: Block, memory: torch.Tensor | None) -> tuple[Any, list[torch.Tensor]]:
        """The batch, and the tensors that were made for it besides `memory`.

        Args:
            block: The block.
            memory: Its copy on the device, or None where the batch stays on the host.
        """
        made = {
            column.name: self._decoded(block, column, memory, *self._decoders[column.name])
            for column in block.layout.columns
            if column.kind == ENCODED
        }
        batch = _with(batch_of(block, memory), block, made)
        if callable(self._on_device):
            batch = self._on_device(batch)
            if batch is None:
                raise UsageError("on_device gave None; it gives the batch that the loop is to get")
            return batch, list(tensors_in([batch, made]))
        if self._on_device is not None:
            worked_on = {
                part: function(_part(batch, block, part))
                for part, function in self._on_device.items()
            }
            batch = _with(batch, block, worked_on)
            return batch, list(tensors_in([made, worked_on]))
        return batch, list(tensors_in(made))

    def _decoded(
        self,
        block: Block,
        column: Any,
        memory: torch.Tensor | None,
        decoder: GpuDecode,
        decode: Decode,
    ) -> Any:
        found = decode_column(block, column, memory, decoder.crop.form, decode)
        self.by_cpu += found.by_cpu
        return found.images


def encoded_parts(sources: Sequence[Source], parts: Sequence[str]) -> dict[str, GpuDecode]:
    """The parts that arrive encoded, and what decodes them.

    Raises:
        UsageError: Sources of a mixture differ in it, or a transform wants to see the image.
    """
    found: dict[str, GpuDecode] = {}
    for part in parts:
        decoders = [source.decode.get(part) for source in sources]
        if not any(isinstance(decoder, GpuDecode) for decoder in decoders):
            continue
        decoder = decoders[0]
        if not isinstance(decoder, GpuDecode) or any(other != decoder for other in decoders):
            raise UsageError(
                f"part {part!r} is decoded on the GPU in one source of the mixture and otherwise "
                "in another; give all the same ss.GpuDecode"
            )
        if any(source.transform is not None for source in sources):
            raise UsageError(
                f"part {part!r} is decoded on the GPU, after transform=, which would need it; "
                "StreamLoader(on_device=…) works on it there"
            )
        found[part] = decoder
    return found


def _part(batch: Any, block: Block, part: str) -> Any:
    """One part of a batch.

    Raises:
        UsageError: There is none by that name.
    """
    names = [column.name for column in block.layout.columns]
    parts = block.layout.parts
    if isinstance(parts, str):
        names = [parts]
    elif parts is not None:
        names = list(parts)
    if part not in names:
        raise UsageError(
            f"on_device has no part {part!r} to work on; a batch has {', '.join(names)}"
        )
    if isinstance(parts, str):
        return batch
    return batch[part if parts is None else names.index(part)]


def _with(batch: Any, block: Block, values: Mapping[str, Any]) -> Any:
    """A batch with other values of some parts."""
    if not values:
        return batch
    if isinstance(block.layout.parts, str):
        return next(iter(values.values()))
    return with_values(batch, values)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that a value is made of.

    Looked for in dicts, lists, tuples, dataclasses, and graphs of PyG.
    """
    inner: Iterable[Any] = ()
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    elif hasattr(value, "stores"):
        inner = (field for store in value.stores for field in store.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = (getattr(value, field.name) for field in dataclasses.fields(value))
    for one in inner:
        yield from tensors_in(one)
