from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamshard.codec.base import Form
from streamshard.codec.text import BytesCodec, IntCodec, JsonCodec, TextCodec

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


class TestBytes:
    """Bytes stay as they are."""

    @given(st.binary())
    def test_the_round_trip_keeps_them(self, data: bytes) -> None:
        codec = BytesCodec()
        for value in (data, bytearray(data), memoryview(data)):
            packed = codec.pack(value)
            assert (packed.data, packed.facts, packed.schema) == (data, {}, {})
            assert type(packed.data) is bytes
            assert codec.decode(packed.data) == data

    @pytest.mark.parametrize("value", [3, "text", None, [1, 2], np.zeros(3, np.uint8)])
    def test_anything_else_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match="given where bytes are wanted"):
            BytesCodec().pack(value)


class TestText:
    """UTF-8."""

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_the_round_trip_keeps_it(self, text: str) -> None:
        packed = TextCodec().pack(text)
        assert packed.data == text.encode("utf-8")
        assert TextCodec().decode(packed.data) == text
        assert TextCodec().pack(packed.data).data == packed.data

    @pytest.mark.parametrize("data", [b"\xff", "ä".encode("latin-1"), b"\xed\xa0\x80"])
    def test_bytes_that_are_no_utf8_are_refused_by_pack_and_decode(self, data: bytes) -> None:
        for read in (TextCodec().pack, TextCodec().decode):
            with pytest.raises(ValueError, match="utf-8"):
                read(data)

    @pytest.mark.parametrize("value", [3, None, ["a"]])
    def test_what_is_no_text_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match="given where bytes are wanted"):
            TextCodec().pack(value)


class TestJson:
    """What Python's json reads."""

    @given(JSON)
    def test_the_round_trip_keeps_the_value(self, value: Any) -> None:
        data = JsonCodec().pack(value).data
        assert JsonCodec().decode(data) == json.loads(data) == value

    def test_it_is_compact_and_keeps_letters_readable(self) -> None:
        assert JsonCodec().pack({"a": [1, "ä"]}).data == '{"a":[1,"ä"]}'.encode()

    def test_bytes_are_kept_as_they_are(self) -> None:
        assert JsonCodec().pack(b' {"a": 1 } ').data == b' {"a": 1 } '

    @pytest.mark.parametrize("data", [b"", b"{", b"nul", b"\xff", b"1 2", b"[" * 100_000])
    def test_what_is_no_json_is_refused_by_pack_and_decode(self, data: bytes) -> None:
        for read in (JsonCodec().pack, JsonCodec().decode):
            with pytest.raises(ValueError):  # noqa: PT011 - json's own words
                read(data)


class TestInt:
    """One integer, which is a fact of its own."""

    @given(st.integers(-(2**63), 2**63 - 1))
    def test_the_round_trip_keeps_it_and_the_index_has_it(self, value: int) -> None:
        for given_value in (value, np.int64(value), torch.tensor(value), b"%d" % value):
            packed = IntCodec().pack(given_value)
            assert packed.data == b"%d" % value
            assert packed.facts == {"": value}
            assert IntCodec().decode(packed.data) == value

    def test_a_final_newline_is_fine(self) -> None:
        assert IntCodec().pack(b"7\n").facts == {"": 7}

    @pytest.mark.parametrize("value", [2**63, -(2**63) - 1, b"99999999999999999999"])
    def test_what_does_not_fit_64_bits_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match="does not fit 64 bits"):
            IntCodec().pack(value)

    @pytest.mark.parametrize("value", [b"", b"cat", b"1.5", b"1 2", "dog", b"\xff", b"9" * 5000])
    def test_what_is_no_integer_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - int's own words
            IntCodec().pack(value)

    @pytest.mark.parametrize("value", [3.7, np.float32(0.5), torch.tensor(2.5), float("inf")])
    def test_a_fraction_is_refused_and_not_cut(self, value: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            IntCodec().pack(value)

    def test_integers_are_stacked_as_int64(self) -> None:
        assert IntCodec().form({}) == Form(torch.int64, ())
