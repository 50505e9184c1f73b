"""The values of a MosaicML dataset: bytes of a column to what `MakeSample` takes.

The encodings are those of mosaicml-streaming 0.13; what it would unpickle is not read. Numbers are
little-endian, as on every machine that it runs on.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from streamshard.codec.pixels import MAX_PIXELS
from streamshard.pack.roles import Column, Kind

Decode = Callable[[bytes], Any]

_SIZES_OF_SHAPES = ("<u1", "<u2", "<u4", "<u8")
_NUMBERS = {
    f"{kind}{bits}": np.dtype(f"<{kind[0]}{bits // 8}")
    for kind, several in (("uint", (8, 16, 32, 64)), ("int", (8, 16, 32, 64)))
    for bits in several
} | {f"float{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)}
# In an array without a dtype of its own: bits, with 1 more for signed and 2 for floats.
_BY_CODE = {
    dtype.itemsize * 8 + {"u": 0, "i": 1, "f": 2}[dtype.kind]: dtype for dtype in _NUMBERS.values()
}
_IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


def column_of(name: str, encoding: str) -> Column:
    """A column as the index tells of it."""
    kind, _, suffix = _kind(encoding).partition(":")
    if kind == "refused":
        why = "is pickled, and nothing is unpickled" if encoding == "pkl" else "is not known here"
        return Column(name, "refused", f"its encoding {encoding!r} {why}")
    return Column(name, kind, encoding, suffix)  # type: ignore[arg-type]


def _kind(encoding: str) -> str:
    if encoding in _DECODERS:
        return _DECODERS[encoding][0]
    try:
        decoder_of(encoding)
    except ValueError:
        return "refused"
    return "array"


@functools.cache
def decoder_of(encoding: str) -> Decode:
    """What turns bytes into a value; it raises ValueError where they are none.

    Raises:
        ValueError: There is no such encoding.
    """
    if encoding in _DECODERS:
        return _DECODERS[encoding][1]
    name, _, details = encoding.partition(":")
    dtype, _, shape = details.partition(":")
    if name != "ndarray" or (dtype and dtype not in _NUMBERS) or (shape and not dtype):
        raise ValueError(f"no encoding {encoding!r}")
    sizes = tuple(map(int, shape.split(","))) if shape else None
    return functools.partial(_array, dtype=_NUMBERS[dtype] if dtype else None, shape=sizes)


def _number(data: bytes, dtype: np.dtype[Any]) -> int | float:
    if len(data) != dtype.itemsize:
        raise ValueError(f"{len(data)} bytes; a {dtype} has {dtype.itemsize}")
    value: int | float = np.frombuffer(data, dtype)[0].item()
    return value


def _array(data: bytes, dtype: np.dtype[Any] | None, shape: Sequence[int] | None) -> Any:
    """An array: its dtype and its shape come first where the encoding does not say them."""
    file = io.BytesIO(data)
    if dtype is None:
        code = _take(file, 1)[0]
        if code not in _BY_CODE:
            raise ValueError(f"an array of dtype {code}, which is none")
        dtype = _BY_CODE[code]
    if shape is None:
        head = _take(file, 1)[0]
        sizes = np.dtype(_SIZES_OF_SHAPES[head % 4])
        read = np.frombuffer(_take(file, (head >> 2) * sizes.itemsize), sizes)
        shape = read.tolist()
    wanted, left = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if left != wanted:
        raise ValueError(f"{left} bytes; {dtype} of shape {[*shape]} has {wanted}")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()  # to be written to


def _take(file: io.BytesIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise ValueError("it ends too early")
    return data


def _pil(data: bytes) -> bytes:
    """Pixels as they lie in memory, behind width, height and mode, as the bytes of a PNG."""
    file = io.BytesIO(data)
    width, height, letters = np.frombuffer(_take(file, 12), "<u4").tolist()
    if width * height > MAX_PIXELS:
        raise ValueError(f"an image of {width}x{height} pixels; at most {MAX_PIXELS} are read")
    mode = _take(file, letters).decode()
    if mode not in _IN_PNG:
        raise ValueError(f"an image of Pillow's mode {mode}, which PNG does not hold")
    png = io.BytesIO()
    Image.frombytes(mode, (width, height), file.read()).save(png, "PNG")
    return png.getvalue()


def _several(data: bytes, decode: Decode, *, skip: int) -> list[Any]:
    """Values behind their number and sizes; some encodings have four bytes in front."""
    file = io.BytesIO(data)
    _take(file, skip)
    (count,) = np.frombuffer(_take(file, 4), "<u4").tolist()
    if 4 * count > len(data):
        raise ValueError(f"{count} values, which do not fit into {len(data)} bytes")
    sizes = np.frombuffer(_take(file, 4 * count), "<u4").tolist()
    values = [decode(_take(file, size)) for size in sizes]
    if file.read(1):
        raise ValueError("bytes behind the last value")
    return values


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def _lists(decode: Decode) -> tuple[str, Decode]:
    return "images", functools.partial(_several, decode=decode, skip=4)


_ARRAY: tuple[Kind, Decode] = ("array", functools.partial(_array, dtype=None, shape=None))
_FRAMES: tuple[Kind, Decode] = ("images", functools.partial(_several, decode=bytes, skip=0))

# What a column of each encoding holds (of images their format), and what turns bytes into it. There
# is one more, pkl, which would have to be unpickled.
_DECODERS: dict[str, tuple[str, Decode]] = {
    "bytes": ("bytes", bytes),
    "str": ("text", bytes.decode),
    "int": ("integer", functools.partial(_number, dtype=_NUMBERS["int64"])),
    **{
        name: (
            "value" if dtype.kind == "f" else "integer",
            functools.partial(_number, dtype=dtype),
        )
        for name, dtype in _NUMBERS.items()
    },
    "str_int": ("integer", int),
    "str_float": ("value", float),
    "str_decimal": ("value", bytes.decode),
    "json": ("value", _json),
    "ndarray": _ARRAY,
    "jpeg": ("image:jpg", bytes),
    "png": ("image:png", bytes),
    "pil": ("image:png", _pil),
    "jpeg_array": _FRAMES,
    "jpegarray": _FRAMES,
    "list[jpeg]": _lists(bytes),
    "list[png]": _lists(bytes),
    "list[pil]": _lists(_pil),
}
