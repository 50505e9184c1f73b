"""What a source of samples is.

A source is a sequence of inputs, small and picklable, and a function that turns one input into a
sample, in whichever process. What it finds while listing (class names, odd files) it tells.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from streamshard.codec.base import Codec
from streamshard.errors import PackError
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
    def load(self) -> Callable[[Any], Sample | list[Sample]]:
        """Turns one input into a sample or a list of them; picklable where `portable`."""

    @property
    def place(self) -> Callable[[Any], str] | None:
        """Tells where an input lies, for errors; None where the sample's key says it."""

    @property
    def portable(self) -> bool:
        """Whether `load` is worth sending to other processes."""


class KeyedSource(Source, Protocol):
    """A source that knows the key of an input before it is loaded."""

    def key(self, given: Any) -> str:
        """The key of the sample that an input gives."""


def pack_order(length: int, seed: int | None) -> Sequence[int]:
    """A permutation of 0..length-1, or that range itself; eight bytes a number."""
    if seed is None:
        return range(length)
    numbers = np.arange(length, dtype=np.int64)
    permuted = permute(numbers, np.array([length], np.int64), key_of(seed))
    return array("q", permuted.astype(np.int64).tobytes())


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Every folder below one and its files but the hidden ones, sorted, links followed.

    Raises:
        PackError: A folder can't be read, or comes back below itself.
    """
    seen: set[tuple[int, int]] = set()  # so that a link to a folder above ends somewhere
    for folder, folders, files in os.walk(root, onerror=_not_listed, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            raise PackError(f"{folder}: a link to a folder that is there already below {root}")
        seen.add((stat.st_dev, stat.st_ino))
        yield folder, sorted(name for name in files if not name.startswith("."))


def _not_listed(error: OSError) -> None:
    raise PackError(f"{error.filename}: {error.strerror}")
