"""Parts that need no tensor: text, JSON, one integer, plain bytes."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any

import torch

from streamshard.codec.base import Facts, Form, Packed, Schema


class BytesCodec:
    """Bytes as they are: what an unknown suffix stays."""

    name = "bytes"

    def pack(self, value: Any) -> Packed:
        """See `Codec`."""
        data = self.encode(value)
        return Packed(data, *self.inspect(data))

    def encode(self, value: Any) -> bytes:
        """The bytes of a value; bytes stay as they are."""
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        raise ValueError(f"{type(value).__name__} given where bytes are wanted")

    def inspect(self, data: bytes) -> tuple[Facts, Schema]:
        """Facts and schema of some bytes; to decode them once is the check."""
        self.decode(data)
        return {}, {}

    def merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
        """See `Codec`."""
        return {}

    def decode(self, data: bytes) -> Any:
        """See `Codec`."""
        return data

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """See `Codec`."""
        return None


class TextCodec(BytesCodec):
    """UTF-8 text, a str."""

    name = "text"

    def encode(self, value: Any) -> bytes:
        """See `BytesCodec`."""
        return value.encode() if isinstance(value, str) else super().encode(value)

    def decode(self, data: bytes) -> str:
        """See `Codec`."""
        return data.decode()


class JsonCodec(BytesCodec):
    """JSON, as Python's `json` reads it."""

    name = "json"

    def encode(self, value: Any) -> bytes:
        """See `BytesCodec`: compact, non-ASCII as it is."""
        if isinstance(value, bytes):
            return value
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Any:
        """See `Codec`."""
        try:
            return json.loads(data)
        except RecursionError:
            raise ValueError("JSON nested too deep") from None


class IntCodec(BytesCodec):
    """One decimal integer, such as a class; the index keeps it, so that it costs no read."""

    name = "int"

    def encode(self, value: Any) -> bytes:
        """See `BytesCodec`."""
        if isinstance(value, bytes):
            return value
        # A fraction is refused, not cut.
        return b"%d" % (int(value) if isinstance(value, str) else operator.index(value))

    def inspect(self, data: bytes) -> tuple[Facts, Schema]:
        """See `BytesCodec`: the one fact is the value itself."""
        value = self.decode(data)
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{value} does not fit 64 bits")
        return {"": value}, {}

    def decode(self, data: bytes) -> int:
        """See `Codec`."""
        return int(data)

    def form(self, schema: Mapping[str, Any]) -> Form | None:
        """See `Codec`: int64, one a sample."""
        return Form(torch.int64, ())
