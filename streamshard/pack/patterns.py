"""Tars and other files that others wrote: which ones a pattern names; where samples lie in tars."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from typing import Any

from braceexpand import braceexpand

from streamshard.errors import DamagedError, PackError, StoreError, UsageError
from streamshard.shard import tar
from streamshard.store.base import Store, redact
from streamshard.store.filesystem import open_store

PLAIN = (".tar",)
READ_ONCE = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # after unpacking, where that is due


def split_pattern(pattern: str, endings: tuple[str, ...] = PLAIN) -> tuple[str, str]:
    """The folder of a pattern of files with some ending, and what is left for their names.

    >>> split_pattern("data/train-{000..009}.tar"), split_pattern("data/")
    (('data', 'train-{000..009}.tar'), ('data', '*.tar'))
    """
    folder, _, names = pattern.rpartition("/")
    if not pattern.endswith(endings) and not _has_wildcard(names):
        return pattern.rstrip("/") or pattern, f"*{endings[0]}"
    return folder or ("/" if pattern.startswith("/") else "."), names


def expand_names(store: Store, names: str, kind: str = PLAIN[0]) -> list[str]:
    """The files that a pattern stands for: all of a brace pattern, what is there of a wildcard.

    Raises:
        PackError: There is none of some name.
        UsageError: The braces are not balanced.
    """
    there = _listed(store, needed=_has_wildcard(names))
    found: list[str] = []
    for name in braces(names, f"{store.where}/{names}"):
        if _has_wildcard(name):
            hits = sorted(fnmatch.filter(there, name))
        else:  # a store may know a file that it does not list, as plain web servers do
            hits = [name] if name in there or store.exists(name) else []
        if not hits:
            raise PackError(f"{store.where}/{name}: no such {kind[1:]}")
        found += hits
    return found


def _listed(store: Store, *, needed: bool) -> set[str]:
    try:
        return set(store.list())
    except StoreError:
        if needed:
            raise
        return set()


def _has_wildcard(names: str) -> bool:
    return any(character in names for character in "*?[")


def braces(pattern: str, where: str) -> list[str]:
    """What a brace pattern stands for, in order.

    Raises:
        UsageError: They are not balanced.
    """
    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise UsageError(f"{where}: unbalanced braces") from None


def expand(
    pattern: str, options: Mapping[str, Any] | None, endings: tuple[str, ...] = READ_ONCE
) -> list[str]:
    """The paths or URLs of the files that a pattern names.

    Args:
        pattern: A folder; or one file, or several by braces, also in folders, and wildcards.
        options: For fsspec.
        endings: Of the files.

    Raises:
        PackError: There is none.
        UsageError: The braces are not balanced.
        StoreError: A folder can't be listed.
    """
    found: list[str] = []
    folders, names = split_pattern(pattern, endings)
    for folder in braces(folders, redact(pattern)):
        store = open_store(folder, options)
        if pattern.endswith((*endings, names)):
            here = expand_names(store, names, endings[0])
        else:
            here = [name for name in store.list() if name.endswith(endings)]
        if not here:
            raise PackError(f"{store.where}: no {endings[0][1:]} there")
        found += [f"{folder.rstrip('/')}/{name}" for name in here]
    return found


def samples_of(
    file: BufferedIOBase, size: int, where: str
) -> Iterator[tuple[str, str, tar.Member]]:
    """Key, part and member of everything in a tar that belongs to a sample.

    Raises:
        DamagedError: A key comes back after another one, or a sample has a part twice.
    """
    seen: set[str] = set()
    current, suffixes = "", set[str]()
    for member in tar.scan(file, size, where):
        split = tar.split_name(member.name)
        if split is None:
            continue
        key, suffix = split
        if key != current:
            if key in seen:
                raise DamagedError(
                    f"{where}: key {key} comes back at offset {member.header}; the parts of a "
                    "sample lie side by side"
                )
            seen.add(key)
            current, suffixes = key, set()
        if suffix in suffixes:
            raise DamagedError(f"{where}: key {key} has the part {suffix} twice")
        suffixes.add(suffix)
        yield key, suffix, member
