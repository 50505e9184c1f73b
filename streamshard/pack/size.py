"""Sizes as people write them."""

from __future__ import annotations

import re

from streamshard.errors import UsageError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 64MB; units are decimal.

    >>> parse_size("2MB"), parse_size(512)
    (2000000, 512)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", str(size).upper())
    unit = match[2] if match else ""
    unit += "B" if unit and not unit.endswith("B") else ""
    unit = "" if unit == "B" else unit
    if not match or float(match[1]) * _UNITS[unit] < 1:
        raise UsageError(f"size {size!r}; a number of bytes or something like 64MB is wanted")
    return int(float(match[1]) * _UNITS[unit])
