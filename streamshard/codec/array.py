"""A `.npy` file seen as an array, without reading more of it than its header.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"
_CHANNELS = {1, 3, 4}


def view_of(data: bytes | memoryview) -> NDArray[Any]:
    """The array of a file, on the file's own bytes; only what is then read of it is touched.

    Raises:
        ValueError: Not a whole `.npy` file, or one of objects.
    """
    begin = 10 if data[6:7] == b"\x01" else 12  # version 1 has two bytes for the header's length
    end = begin + int.from_bytes(data[8:begin], "little")
    shape, order, dtype, nbytes = _parsed(bytes(data[:end]))
    if end + nbytes != len(data):
        raise ValueError(f"not a whole .npy file: {len(data)} bytes")
    return np.ndarray(shape, dtype, data, end, order=order)


def as_picture(shape: Sequence[int]) -> tuple[int, int, bool] | None:
    """Height and width of a picture, and whether its channels come first; None if it is none.

    A picture is (height, width), (height, width, channels) or (channels, height, width), of 1, 3 or
    4 channels.
    """
    if len(shape) == 2:
        return shape[0], shape[1], False
    if len(shape) != 3 or not {shape[0], shape[2]} & _CHANNELS:
        return None
    comes_first = shape[2] not in _CHANNELS
    height, width = shape[1:] if comes_first else shape[:2]
    return height, width, comes_first


@functools.lru_cache(maxsize=1024)  # images of one size have the same header, and parsing is slow
def _parsed(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any], int]:
    """Shape, order, dtype, and bytes of all elements."""
    file = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read(file)
    except Exception as error:  # a damaged header raises whatever Python's parser does
        raise ValueError(f"not a .npy file ({error})") from None
    if dtype.hasobject:
        raise ValueError("a .npy file of objects, which would have to be unpickled")
    return shape, "F" if is_fortran else "C", dtype, dtype.itemsize * math.prod(shape)
