"""Integers in as few bytes as the values of one graph allow, and how the index tells of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SIGNED = 16  # is added to the width of integers that have a sign
INTEGERS = (torch.int64, torch.int32, torch.int16)  # that may be narrowed
_NARROW = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)


def narrowed(array: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """The values in the narrowest integers that hold them, and the width as the index keeps it."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    for kind in _NARROW:
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max and limits.bits // 8 < array.itemsize:
            array = array.astype(kind)
            break
    return array, array.itemsize + (SIGNED if array.dtype.kind == "i" else 0)


def width_of(dtype: torch.dtype) -> int:
    """Bytes of an integer as the index keeps them: 16 more where it is signed."""
    return dtype.itemsize + (SIGNED if dtype.is_signed else 0)
