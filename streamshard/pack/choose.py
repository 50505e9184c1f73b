"""Some inputs of a source: those that patterns name, or that belong to a split."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from streamshard.codec.base import Codec
from streamshard.errors import PackError, UsageError
from streamshard.pack.files import Files, Listed
from streamshard.pack.sources import KeyedSource
from streamshard.shard.split import hash_bounds, key_hash

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Globs:
    """What `--include` and `--exclude` say; `*` matches slashes too.

    Attributes:
        include: Patterns of which one must match; none for everything.
        exclude: Patterns of which none may match.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def accept(self, *names: str) -> bool:
        """Whether something that goes by these names is taken."""

        def named(patterns: Iterable[str]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

        return (not self.include or named(self.include)) and not named(self.exclude)

    def note(self, left_out: int) -> list[str]:
        """What to say of the inputs that were left out."""
        return [f"{left_out} inputs were left out by --include and --exclude"] if left_out else []


def parse_split(text: str) -> dict[str, float]:
    """The fractions of `train=0.9,val=0.1`.

    >>> parse_split("train=0.9,val=0.1")
    {'train': 0.9, 'val': 0.1}
    """
    fractions: dict[str, float] = {}
    for pair in text.split(","):
        name, _, value = (word.strip() for word in pair.partition("="))
        try:
            if name in fractions:
                raise ValueError
            fractions[name] = float(value)
        except ValueError:
            raise UsageError(
                f"--split {text!r}; NAME=FRACTION,NAME=FRACTION is wanted, each name once"
            ) from None
    check_split(fractions)
    return fractions


def check_split(fractions: Mapping[str, float]) -> None:
    """Refuse names that can be no folder, and fractions out of their range.

    Raises:
        UsageError: See above.
    """
    for name in fractions:
        if not _SPLIT_NAME.fullmatch(name):
            raise UsageError(f"split {name!r}; letters, digits, _ and - make a folder's name")
    hash_bounds(fractions)


class Chosen:
    """Those inputs of a source whose keys are accepted, in the same order.

    Attributes:
        classes: Of the source.
        codecs: Of the source.
        notes: Of the source.
        load: Of the source.
        place: Of the source.
        key: Of the source.
        portable: Of the source.
    """

    def __init__(
        self, source: KeyedSource, accept: Callable[[str], bool], mask: bytes | None
    ) -> None:
        """Choose.

        Args:
            source: The whole of them.
            accept: Whether a key is taken.
            mask: The same as one byte an input, 1 or 0, where the source knows how many it has.
        """
        self.classes: Sequence[str] | None = source.classes
        self.codecs: Mapping[str, Codec] = source.codecs
        self.notes, self.load, self.place = source.notes, source.load, source.place
        self.portable, self.key = source.portable, source.key
        self._source, self._accept, self._mask = source, accept, mask

    def inputs(self) -> Iterable[Any]:
        """See `Source`."""
        if self._mask is not None:
            return _Some(self._source.inputs, self._mask)
        source = self._source
        return (given for given in source.inputs() if self._accept(source.key(given)))

    def files(self) -> Files | None:
        """See `Listed`: all files of the source, since they decide the keys; the chosen first."""
        files = self._source.files() if isinstance(self._source, Listed) else None
        if files is None or not files.one_each or self._mask is None:
            return None if files is None else files._replace(one_each=False)
        mask = self._mask.ljust(len(files.names), b"\0")
        return files.reordered(sorted(range(len(mask)), key=lambda number: not mask[number]))


class _Some:
    """Inputs where a mask has a one."""

    def __init__(self, inputs: Callable[[], Iterable[Any]], mask: bytes) -> None:
        self._inputs, self._mask, self._length = inputs, mask, sum(mask)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return itertools.compress(self._inputs(), self._mask)


def globbed(source: KeyedSource, globs: Globs) -> KeyedSource:
    """The inputs of a source whose keys the patterns take.

    Raises:
        PackError: There is none.
    """
    if not globs:
        return source

    def accept(key: str) -> bool:
        return not key or globs.accept(key)  # what can't be read is told, not left out

    inputs = source.inputs()
    if not isinstance(inputs, Sized):
        return Chosen(source, accept, None)
    mask = bytes(accept(key) for key in _keys(source, inputs))
    if not any(mask):
        raise PackError(f"none of {len(mask)} keys is left by --include and --exclude")
    chosen = Chosen(source, accept, mask)
    chosen.notes = [*source.notes, *globs.note(len(mask) - sum(mask))]
    return chosen


def split_source(source: KeyedSource, fractions: Mapping[str, float]) -> dict[str, KeyedSource]:
    """The inputs of a source by split, as `ShardDataset.split` would divide their keys.

    Raises:
        PackError: A split gets none of them, where that is known beforehand.
    """
    inputs = source.inputs()
    hashes: array[int] | None = None
    if isinstance(inputs, Sized):
        hashes = array("Q", (_hash_of(key) for key in _keys(source, inputs)))
    splits: dict[str, KeyedSource] = {}
    left = 0 if hashes is None else len(hashes)
    for name, (begin, end) in hash_bounds(fractions).items():
        mask = None if hashes is None else bytes(begin <= value < end for value in hashes)
        if mask is not None and not any(mask):
            raise PackError(
                f"split {name}={fractions[name]} gets none of {len(mask)} samples; "
                "a split has at least one"
            )
        splits[name] = Chosen(source, _InBounds(begin, end), mask)
        left = 0 if mask is None else left - sum(mask)
    if left:
        splits[name].notes = [*source.notes, f"{left} inputs belong to no split"]
    return splits


@dataclass(frozen=True)
class _InBounds:
    """Whether the hash of a key lies in [begin, end)."""

    begin: int
    end: int

    def __call__(self, key: str) -> bool:
        return self.begin <= _hash_of(key) < self.end


def _hash_of(key: str) -> int:
    """The hash of a key. None: the input can't be read, and is told with the first split."""
    return key_hash(key) if key else 0


def _keys(source: KeyedSource, inputs: Iterable[Any]) -> Iterator[str]:
    """The keys of all inputs, from the inputs' own list of them where they have one."""
    own = getattr(inputs, "keys", None)
    return own() if own else (source.key(given) for given in inputs)
