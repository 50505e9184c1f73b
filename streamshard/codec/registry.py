"""Which codec a part has: by its suffix when it is packed, by name from the manifest after that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamshard.codec.base import Codec
from streamshard.codec.graph import GraphCodec
from streamshard.codec.image import ImageCodec
from streamshard.codec.tensor import NpyCodec, TensorsCodec
from streamshard.codec.text import BytesCodec, IntCodec, JsonCodec, TextCodec

GRAPH_SUFFIX = "graph.safetensors"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "tif", "tiff", "gif")

# The suffixes of text, json and int are those of webdataset's default decoders.
_BY_SUFFIX: dict[str, Codec] = {
    **{suffix: ImageCodec(suffix) for suffix in IMAGE_SUFFIXES},
    **dict.fromkeys(("txt", "text", "transcript"), TextCodec()),
    **dict.fromkeys(("json", "jsn"), JsonCodec()),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), IntCodec()),
    "npy": NpyCodec(),
    "safetensors": TensorsCodec(),
    GRAPH_SUFFIX: GraphCodec(),
}
_BYTES = BytesCodec()


def codec_of(suffix: str) -> Codec:
    """The codec of a part, by its whole suffix, else by what follows its last dot, else bytes.

    >>> codec_of("seg.png").name, codec_of("graph.safetensors").name, codec_of("weird").name
    ('image', 'graph', 'bytes')
    """
    return _BY_SUFFIX.get(suffix) or _BY_SUFFIX.get(suffix.rpartition(".")[2]) or _BYTES


def decoded(suffix: str, data: bytes, schema: Mapping[str, Any]) -> Any:
    """The value of a part's bytes; of a graph with the dtypes that its schema says."""
    codec = codec_of(suffix)
    return codec.decode(data, schema) if isinstance(codec, GraphCodec) else codec.decode(data)


def codec_of_packed(suffix: str, schema: Mapping[str, Any]) -> Codec:
    """The codec that tells of a part's bytes again what it told when they were packed.

    Whatever a graph was allowed to hold then it may hold now, and what was narrowed is known by the
    dtypes of the schema.
    """
    codec = codec_of(suffix)
    if isinstance(codec, GraphCodec):
        return GraphCodec(allow_empty=True, allow_nan=True, schema=schema)
    return codec


def part_of(suffix: str) -> str:
    """What a part is called in a batch: its suffix, but `graph` for `graph.safetensors`."""
    return "graph" if suffix == GRAPH_SUFFIX else suffix


def suffix_of(part: str) -> str:
    """The suffix that a part has in the tar; the inverse of `part_of`."""
    return GRAPH_SUFFIX if part == "graph" else part
