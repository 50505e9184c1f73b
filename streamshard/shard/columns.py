"""Named numpy arrays in one safetensors file, read without copying.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, a JSON header,
the arrays). Written with that library; read here at the header's offsets, since the library's own
reader copies and worker processes are to share the pages of a memory map.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from streamshard.errors import DamagedError

Columns = dict[str, NDArray[np.generic]]

_DTYPES = {
    "U8": np.uint8,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
}


def to_bytes(columns: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The safetensors file that holds these arrays."""
    return bytes(save({name: np.ascontiguousarray(column) for name, column in columns.items()}))


def from_buffer(buffer: NDArray[np.uint8], where: str) -> Columns:
    """Views of the arrays in a safetensors file.

    Args:
        buffer: The whole file, (bytes,) uint8; a memory map stays one.
        where: What to call the file in errors.

    Raises:
        DamagedError: The header does not describe the bytes that follow it.
    """
    try:
        length = int.from_bytes(buffer[:8].tobytes(), "little")
        header = json.loads(buffer[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        data = buffer[8 + length :]
        return {name: _view(data, **entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{where}: not a whole safetensors file ({error})") from None


def _view(
    data: NDArray[np.uint8], dtype: str, shape: Sequence[int], data_offsets: Sequence[int]
) -> NDArray[np.generic]:
    begin, end = data_offsets
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"a shape of {shape}")
    if not 0 <= begin <= end <= len(data):
        raise ValueError(f"bytes {begin} to {end} of {len(data)}")
    return data[begin:end].view(_DTYPES[dtype]).reshape(shape)


_AT_ONCE = 1 << 12  # strings that are moved together, which bounds the memory


class Strings(Sequence[str]):
    """A read-only sequence of strings kept as two arrays, so that forked workers share its pages.

    >>> list(Strings.of(["a", "bcd"]))
    ['a', 'bcd']
    """

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.data = data
        self.ends = ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        """Encode strings as UTF-8."""
        data, ends = bytearray(), array("q")
        for string in strings:
            data += string.encode("utf-8", "surrogateescape")
            ends.append(len(data))
        return cls(np.frombuffer(data, np.uint8), np.frombuffer(ends, np.int64))

    def take(self, numbers: NDArray[np.int64]) -> Strings:
        """Those of some numbers, in their order."""
        begins = np.concatenate([np.zeros(1, np.int64), self.ends])[:-1]
        sizes = (self.ends - begins)[numbers]
        pieces = [
            # Of each byte wanted, the place where it lies.
            self.data[np.repeat(first - (np.cumsum(n) - n), n) + np.arange(n.sum())]
            for at in range(0, len(numbers), _AT_ONCE)
            for first, n in [(begins[numbers[at : at + _AT_ONCE]], sizes[at : at + _AT_ONCE])]
        ]
        return Strings(np.concatenate([np.zeros(0, np.uint8), *pieces]), np.cumsum(sizes))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]
        count = len(self.ends)
        if not -count <= number < count:
            raise IndexError(f"string {number} of {count}")
        number %= count
        begin = self.ends.item(number - 1) if number else 0
        encoded = self.data[begin : self.ends.item(number)].tobytes()
        return encoded.decode("utf-8", "surrogateescape")
