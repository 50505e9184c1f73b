"""Arrays: `.npy` for one, `.safetensors` for several by name. No pickled objects in either."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from streamshard.codec.array import MAGIC, view_of
from streamshard.codec.base import Facts, Form, Schema, merge_equal
from streamshard.codec.text import BytesCodec


class NpyCodec(BytesCodec):
    """One array in numpy's format, a tensor of the same shape and dtype.

    Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """

    name = "npy"

    def encode(self, value: Any) -> bytes:
        """See `BytesCodec`: takes arrays, tensors and whatever `np.asarray` does."""
        if isinstance(value, bytes):
            return value
        array = np.asarray(plain(value).numpy() if isinstance(value, torch.Tensor) else value)
        file = io.BytesIO()
        # ascontiguousarray alone would give a single number an axis.
        np.save(file, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
        return file.getvalue()

    def inspect(self, data: bytes) -> tuple[Facts, Schema]:
        """See `BytesCodec`."""
        try:  # an image's pixels are many: by the header alone, where all is as it should be
            array = view_of(data)
            shape, dtype = array.shape, torch.from_numpy(np.empty(0, array.dtype)).dtype
        except (ValueError, TypeError):
            tensor = self.decode(data)
            shape, dtype = tuple(tensor.shape), tensor.dtype
        return {}, {"dtype": str(dtype).removeprefix("torch."), "shape": [*shape]}

    def merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
        """See `Codec`."""
        return merge_equal(one, other)

    def decode(self, data: bytes) -> torch.Tensor:
        """See `Codec`."""
        try:
            if data[:6] != MAGIC:
                raise ValueError("not a .npy file")
            return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))
        except Exception as error:  # a damaged header raises whatever Python's parser does
            what = str(error) or type(error).__name__
            raise ValueError(f"not an array that a tensor can hold ({what})") from None

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """See `Codec`: stacked where dtype and shape never change."""
        if schema.get("dtype") is None or schema.get("shape") is None:
            return None
        return Form(getattr(torch, schema["dtype"]), tuple(schema["shape"]))


class TensorsCodec(BytesCodec):
    """Several tensors by name, a dict.

    Format: https://huggingface.co/docs/safetensors
    """

    name = "tensors"

    def encode(self, value: Any) -> bytes:
        """See `BytesCodec`: takes a mapping from name to tensor or array."""
        if not isinstance(value, bytes | Mapping):
            raise ValueError(f"{type(value).__name__} given where a mapping of tensors is wanted")
        return value if isinstance(value, bytes) else encode_tensors(value)

    def decode(self, data: bytes) -> dict[str, torch.Tensor]:
        """See `Codec`."""
        return decode_tensors(data)


_NOT_NUMPYS = {
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
}


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values in memory, without gradient, device or lazy conjugation."""
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def encode_tensors(tensors: Mapping[str, Any]) -> bytes:
    """A safetensors file of tensors or arrays."""
    as_torch = {name: plain(torch.as_tensor(value)) for name, value in tensors.items()}
    if any(value.dtype in _NOT_NUMPYS for value in as_torch.values()):
        # A copy of each: that writer refuses tensors that share memory.
        copies = {
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in as_torch.items()
        }
        return bytes(save_tensors(copies))
    # The same bytes at a quarter of the time.
    arrays = {
        name: np.ascontiguousarray(value.numpy()).reshape(value.shape)
        for name, value in as_torch.items()
    }
    return bytes(save_arrays(arrays))


FORMAT_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}


def encode_ordered(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file whose bytes lie in the order given.

    The library's writer sorts by dtype, so the order would change where a dtype does.

    Raises:
        ValueError: The format has no such dtype.
    """
    header, pieces, end = {}, [], 0
    for name, value in tensors.items():
        tensor = plain(value)
        if tensor.dtype not in FORMAT_NAMES:
            raise ValueError(f"{name!r} is {tensor.dtype}, which safetensors does not hold")
        flat = tensor.contiguous().reshape(-1)
        pieces.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        begin, end = end, end + len(pieces[-1])
        header[name] = entry(FORMAT_NAMES[tensor.dtype], tensor.shape, begin, end)
    return b"".join([framed(header_text(header)), *pieces])


def entry(dtype: str, shape: Sequence[Any], begin: Any, end: Any) -> dict[str, Any]:
    """What the header says of one tensor."""
    return {"dtype": dtype, "shape": [*shape], "data_offsets": [begin, end]}


def header_text(entries: Mapping[str, Any]) -> str:
    """The header, without its frame."""
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False)


def framed(header: str) -> bytes:
    """What is in front of the data: the header's length, the header, and spaces up to 8 bytes."""
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begin at a multiple of 8, as the library's do
    return len(encoded).to_bytes(8, "little") + encoded


def decode_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, sorted: the library's order is a random one."""
    try:
        return dict(sorted(load_tensors(data).items()))
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not a whole safetensors file ({error})") from None
