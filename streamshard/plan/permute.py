"""A keyed permutation of 0..n-1 that can be asked for any one place: no memory, random access.

Few things are permuted by the order of their hashes; many by a Feistel network over a grid of about
sqrt(n) by sqrt(n) cells with modular addition for its rounds (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002), with cycle-walking for the few cells past n. The
round function is the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom
Number Generators", OOPSLA 2014). Only 64-bit integer operations, so the numbers are the same on
every machine and numpy version.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Move = Callable[[U64, U64, U64], U64]  # (place, size, key) -> place

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_ROUNDS = 8  # even
_AT_ONCE = 2**16  # places, so that the rounds' intermediate arrays stay small
# Up to here by sorting hashes: few things have few permutations, and a network does not reach all
# of them evenly (of nine things, for one, only the even ones).
_SORTED = 32


def mix(value: U64) -> U64:
    """SplitMix64's finalizer: every bit of the input changes half the bits of the output."""
    value = (value ^ (value >> _SHIFTS[0])) * _MULTIPLIERS[0]
    value = (value ^ (value >> _SHIFTS[1])) * _MULTIPLIERS[1]
    mixed: U64 = value ^ (value >> _SHIFTS[2])
    return mixed


def key_of(*words: int | NDArray[np.int64]) -> U64:
    """One key from several non-negative integers; arrays give an array of keys."""
    key = np.zeros(1, np.uint64)
    for word in words:
        key = mix(key + np.asarray(word).astype(np.uint64) * _GOLDEN + _GOLDEN)
    return key


def permute(place: NDArray[np.int64], size: NDArray[np.int64], key: U64) -> NDArray[np.int64]:
    """Where each place goes under the permutation of its key.

    Args:
        place: (n,) int64, 0 <= place < size.
        size: (n,) or (1,) int64, what is permuted: 0..size-1.
        key: (n,) or (1,) uint64; places of one size and key share a permutation.

    Returns:
        (n,) int64, 0 <= result < size.

    >>> sorted(permute(np.arange(5), np.array([5]), key_of(7)).tolist())
    [0, 1, 2, 3, 4]
    """
    return _moved(place, size, key, _ranks, _walk)


def unpermute(place: NDArray[np.int64], size: NDArray[np.int64], key: U64) -> NDArray[np.int64]:
    """Where each place came from: the inverse of `permute`, with the same arguments.

    >>> size, key = np.array([5]), key_of(7)
    >>> unpermute(permute(np.arange(5), size, key), size, key).tolist()
    [0, 1, 2, 3, 4]
    """
    return _moved(place, size, key, _ranked, _walk_back)


def _moved(
    place: NDArray[np.int64], size: NDArray[np.int64], key: U64, few_by: Move, many_by: Move
) -> NDArray[np.int64]:
    sizes, keys = np.broadcast_to(size, place.shape), np.broadcast_to(key, place.shape)
    moved = np.empty(place.shape, np.int64)
    for begin in range(0, len(place), _AT_ONCE):
        now = slice(begin, begin + _AT_ONCE)
        moved[now] = _moved_at_once(place[now], sizes[now], keys[now], few_by, many_by)
    return moved


def _moved_at_once(
    place: NDArray[np.int64], size: NDArray[np.int64], keys: U64, few_by: Move, many_by: Move
) -> U64:
    result, sizes = place.astype(np.uint64), size.astype(np.uint64)
    few = sizes <= np.uint64(_SORTED)
    result[few] = few_by(result[few], sizes[few], keys[few])
    todo = np.flatnonzero(~few)
    while len(todo):
        # At most one cell in sqrt(size) lies past the end, so this loop nearly always ends at once.
        result[todo] = many_by(result[todo], sizes[todo], keys[todo])
        todo = todo[result[todo] >= sizes[todo]]
    return result


def _ranks(place: U64, size: U64, key: U64) -> U64:
    """The rank of each place's hash among those of all places: exact, and O(size) for each."""
    others = np.arange(_SORTED, dtype=np.uint64)
    hashes = mix(others * _GOLDEN + key[:, None])  # (n, places)
    own = mix(place * _GOLDEN + key)[:, None]
    before = (hashes < own) | ((hashes == own) & (others < place[:, None]))
    ranks: U64 = (before & (others < size[:, None])).sum(1).astype(np.uint64)
    return ranks


def _ranked(rank: U64, size: U64, key: U64) -> U64:
    """The place whose hash has this rank: the inverse of `_ranks`."""
    others = np.arange(_SORTED, dtype=np.uint64)
    hashes = mix(others * _GOLDEN + key[:, None])  # (n, places)
    by_hash = np.lexsort((hashes, others >= size[:, None]), axis=1)
    places = np.take_along_axis(by_hash, rank[:, None].astype(np.int64), axis=1)[:, 0]
    return places.astype(np.uint64)


def _walk(place: U64, size: U64, key: U64) -> U64:
    """One pass of the network over the grid of rows x columns >= size cells."""
    rows, columns = _grid(size)
    row, column = place // columns, place % columns
    for turn in range(0, _ROUNDS, 2):
        row = (row + mix(column * _GOLDEN + key + np.uint64(turn)) % rows) % rows
        column = (column + mix(row * _GOLDEN + key + np.uint64(turn + 1)) % columns) % columns
    cell: U64 = row * columns + column
    return cell


def _walk_back(place: U64, size: U64, key: U64) -> U64:
    """The cell that `_walk` takes to this one."""
    rows, columns = _grid(size)
    row, column = place // columns, place % columns
    for turn in reversed(range(0, _ROUNDS, 2)):
        column = (
            column + columns - mix(row * _GOLDEN + key + np.uint64(turn + 1)) % columns
        ) % columns
        row = (row + rows - mix(column * _GOLDEN + key + np.uint64(turn)) % rows) % rows
    cell: U64 = row * columns + column
    return cell


def _grid(size: U64) -> tuple[U64, U64]:
    columns = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    return (size + columns - np.uint64(1)) // columns, columns
