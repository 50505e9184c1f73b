"""Which split a sample belongs to: by a stable hash of its key, whatever else is packed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from streamshard.errors import UsageError

_HASH_RANGE = 2**64


def key_hash(key: str, salt: int = 0) -> int:
    """64 bits of a key; the salt tells the split of a split from the first."""
    data = key.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(data, digest_size=8, salt=salt.to_bytes(2, "little"))
    return int.from_bytes(digest.digest(), "big")


def hash_bounds(fractions: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """For each name the least hash that belongs to it, and one more than the largest.

    >>> {name: end - begin for name, (begin, end) in hash_bounds({"a": 0.75, "b": 0.25}).items()}
    {'a': 13835058055282163712, 'b': 4611686018427387904}

    Raises:
        UsageError: A fraction is not above 0, or they are more than 1 together.
    """
    if min(fractions.values(), default=0) <= 0 or sum(fractions.values()) > 1 + 1e-9:
        raise UsageError(f"fractions {dict(fractions)}; each above 0, together at most 1")
    bounds, begin, total = {}, 0, 0.0
    for name, fraction in fractions.items():
        total += fraction
        end = min(round(total * _HASH_RANGE), _HASH_RANGE)
        bounds[name] = (begin, end)
        begin = end
    return bounds
