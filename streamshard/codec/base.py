"""What every codec is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch

Facts = dict[str, int]
Schema = dict[str, Any]


class Form(NamedTuple):
    """What a value looks like in every sample of a dataset, so that a batch can stack it.

    Attributes:
        dtype: Of the tensor.
        shape: Of one sample's tensor, without the batch axis.
        channels_last: Whether a batch of (channels, height, width) has the channels of each pixel
            together, as `torch.channels_last` says.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    channels_last: bool = False

    @property
    def nbytes(self) -> int:
        """Of one sample's tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Packed(NamedTuple):
    """One part, ready to be written.

    Attributes:
        data: Its bytes.
        facts: Integers that the index keeps of it, by name.
        schema: What is true of it and may be true of every sample.
    """

    data: bytes
    facts: Facts
    schema: Schema


class Codec(Protocol):
    """Bytes of one part to a value and back.

    Codecs know neither shard nor key: what is wrong with the bytes is a ValueError, and the caller
    adds where they lie.
    """

    name: str

    def pack(self, value: Any) -> Packed:
        """Turn a value into bytes, or check bytes that are given."""

    def merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
        """The schema that holds for both; a ValueError where none may."""

    def decode(self, data: bytes) -> Any:
        """The value."""

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """The one form that every sample has, or None where batches are lists."""


def merge_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
    """What two schemas agree on; None where they differ.

    >>> merge_equal({"dtype": "uint8", "shape": [3]}, {"dtype": "uint8", "shape": [4]})
    {'dtype': 'uint8', 'shape': None}
    """
    return {name: one[name] if one[name] == other.get(name) else None for name in one}
