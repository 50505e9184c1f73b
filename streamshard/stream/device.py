"""Batches to the device: the next copy runs on a stream of its own while this batch is used.

Without CUDA the same code path hands the batch through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from streamshard.stream.batch import batch_of
from streamshard.stream.block import Block

Tag = TypeVar("Tag")


def to_device(
    blocks: Iterator[tuple[Block, Tag]], device: torch.device | None
) -> Iterator[tuple[Any, Tag]]:
    """Turn blocks into batches whose tensors are on the device.

    Args:
        blocks: Blocks, each with whatever belongs to it.
        device: Where to; None and a CPU leave them where they are.

    Yields:
        The batch, and what belonged to its block.
    """
    if device is None or device.type == "cpu":
        for block, tag in blocks:
            yield batch_of(block), tag
    elif device.type == "cuda":
        yield from _overlapped(blocks, device)
    else:
        for block, tag in blocks:
            yield batch_of(block, block.memory.to(device)), tag


def _overlapped(
    blocks: Iterator[tuple[Block, Tag]], device: torch.device
) -> Iterator[tuple[Any, Tag]]:
    """One copy ahead, on a side stream."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Block, torch.Tensor, torch.cuda.Event, Tag] | None = None
    for block, tag in blocks:
        started = (*_copy(block, device, side), tag)
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = started
    if ahead is not None:
        yield _arrived(*ahead, device)


def _copy(
    block: Block, device: torch.device, side: torch.cuda.Stream
) -> tuple[Block, torch.Tensor, torch.cuda.Event]:
    """Begin the copy of a block; the event tells when it is done."""
    pinned = Block(block.memory.pin_memory(), block.layout)
    with torch.cuda.stream(side):
        memory = pinned.memory.to(device, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(side)
    return pinned, memory, event


def _arrived(
    block: Block, memory: torch.Tensor, event: torch.cuda.Event, tag: Tag, device: torch.device
) -> tuple[Any, Tag]:
    """The batch on the device, in the order of the stream that will use it."""
    current = torch.cuda.current_stream(device)
    current.wait_event(event)
    # Made on the side stream: the allocator must not give it out again while this one reads it.
    memory.record_stream(current)
    return batch_of(block, memory), tag
