"""Samples to bytes: keys checked, every part through its codec. Runs in any process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from streamshard.codec.base import Codec, Packed
from streamshard.codec.registry import GRAPH_SUFFIX, codec_of, suffix_of
from streamshard.errors import SampleError
from streamshard.shard import tar

KEY = "__key__"
_SAFE = re.compile(r"[a-zA-Z0-9_/+=,@~-]*")
_KEY_RULE = re.compile(r"[a-zA-Z0-9_+=,@~%-]+(/[a-zA-Z0-9_+=,@~%-]+)*")
_PART_RULE = re.compile(r"(?!__)[a-z0-9_]+(\.[a-z0-9_]+)*")


def escape_key(key: str) -> str:
    """The key with everything outside the safe subset as %XX of its UTF-8 bytes.

    >>> escape_key("class 0/ä.b")
    'class%200/%C3%A4%2Eb'
    """
    if _SAFE.fullmatch(key):
        return key
    kept = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/+=,@~-"
    encoded = key.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in kept else f"%{byte:02X}" for byte in encoded)


def check_key(key: str) -> None:
    """Refuse a key that some reader would lose or change.

    Raises:
        SampleError: The key is empty, absolute, has a `.`, `..`, empty or `__x__` component, or
            something outside the safe subset.
    """
    if not _KEY_RULE.fullmatch(key):
        raise SampleError(f"key {key!r} is not ASCII letters, digits and _/%+=,@~- only")
    if "__" in key and any(_is_left_out(component) for component in key.split("/")):
        raise SampleError(f"key {key!r} has a __x__ component, which readers leave out")


def _is_left_out(component: str) -> bool:
    return component.startswith("__") and component.endswith("__")


class Encoder:
    """Turns samples into what a shard holds."""

    def __init__(self, codecs: Mapping[str, Codec] | None = None) -> None:
        """Make an encoder.

        Args:
            codecs: Codecs by part where the suffix's own is not wanted.
        """
        self._codecs = dict(codecs or {})

    def codec(self, part: str) -> Codec:
        """The codec of a part.

        Raises:
            SampleError: The name can't be a suffix in a tar.
        """
        if part not in self._codecs:
            if not _PART_RULE.fullmatch(part):
                raise SampleError(
                    f"part {part!r} is not a lower-case suffix such as jpg or seg.png"
                )
            self._codecs[part] = codec_of(suffix_of(part))
        return self._codecs[part]

    def __call__(self, sample: Mapping[str, Any]) -> tuple[str, dict[str, Packed]]:
        """Key and parts of a sample, as bytes.

        Raises:
            SampleError: A key or value can't be kept.
        """
        key = sample.get(KEY)
        if not isinstance(key, str):
            raise SampleError(f"a sample needs a {KEY!r}, a str; {key!r} was given")
        check_key(key)
        if GRAPH_SUFFIX in sample and "graph" in sample:
            raise SampleError(f"key {key}: parts graph and {GRAPH_SUFFIX} are one in the tar")
        return key, {
            part: self._pack(key, part, value) for part, value in sample.items() if part != KEY
        }

    def _pack(self, key: str, part: str, value: Any) -> Packed:
        codec = self.codec(part)
        name = f"{key}.{suffix_of(part)}"
        if len(name) > tar.MAX_NAME:
            raise SampleError(
                f"key {key}: {name!r} is longer than {tar.MAX_NAME} bytes; --keys number is shorter"
            )
        if tar.split_name(name) != (key, suffix_of(part)):
            raise SampleError(f"key {key}, part {part}: {name!r} is a name that readers leave out")
        try:
            return codec.pack(value)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise SampleError(f"key {key}, part {part}: {error}") from None
