"""What a source of samples is.

A source is a sequence of inputs, small and picklable, and a function that turns one input into a
sample, in whichever process. What it finds while listing (class names, odd files) it tells.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from streamshard.codec.base import Codec
from streamshard.plan.permute import key_of, permute

Sample = dict[str, Any]


class Source(Protocol):
    """What `pack` asks of a source."""

    notes: list[str]

    @property
    def classes(self) -> Sequence[str] | None:
        """Class names by `cls`, or None."""

    @property
    def codecs(self) -> Mapping[str, Codec]:
        """Codecs by part, where the suffix's own is not wanted."""

    def inputs(self) -> Iterable[Any]:
        """The inputs in the order in which they are packed; sized where that is known."""

    @property
    def load(self) -> Callable[[Any], Sample]:
        """Turns one input into a sample; picklable where `portable`."""

    @property
    def place(self) -> Callable[[Any], str] | None:
        """Tells where an input lies, for errors; None where the sample's key says it."""

    @property
    def portable(self) -> bool:
        """Whether `load` is worth sending to other processes."""


def pack_order(length: int, seed: int | None) -> Sequence[int]:
    """A permutation of 0..length-1, or that range itself."""
    if seed is None:
        return range(length)
    numbers = np.arange(length, dtype=np.int64)
    order: list[int] = permute(numbers, np.array([length], np.int64), key_of(seed)).tolist()
    return order


def chunks(inputs: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` inputs."""
    iterator = iter(inputs)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
