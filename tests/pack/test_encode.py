from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import streamshard as ss
from streamshard.errors import SampleError
from streamshard.pack.encode import Encoder, check_key, escape_key
from tests.pack.sources import read_by_webdataset

# What file systems give out: text, and bytes that are no UTF-8 (as lone surrogates).
file_names = st.one_of(st.text(), st.binary().map(os.fsdecode))

# The rule for keys in words: ASCII letters, digits and _/%+=,@~-, no empty or `__x__` component.
PLAIN = re.compile(r"[A-Za-z0-9_%+=,@~-]+(/[A-Za-z0-9_%+=,@~-]+)*")


@given(file_names, file_names)
def test_two_keys_never_escape_to_one(one: str, other: str) -> None:
    assume(one != other)
    assert escape_key(one) != escape_key(other)


@given(file_names)
def test_an_escaped_key_is_plain_but_for_its_components(key: str) -> None:
    escaped = escape_key(key)
    assert escaped.isascii()
    if PLAIN.fullmatch(escaped) and "__" not in escaped:
        check_key(escaped)
    else:  # only empty and `__x__` components are left to refuse
        assert not all(escaped.split("/")) or "__" in escaped


@given(st.text("abcXYZ019_/+=,@~-"))
def test_a_plain_key_escapes_to_itself(key: str) -> None:
    assert escape_key(key) == key


@pytest.mark.parametrize(
    ("key", "escaped"),
    [
        ("a b", "a%20b"),
        ("a.b", "a%2Eb"),
        ("../up", "%2E%2E/up"),
        ("ä", "%C3%A4"),
        ("100%", "100%25"),
        ("a\\b\n", "a%5Cb%0A"),
        (os.fsdecode(b"caf\xe9"), "caf%E9"),
    ],
)
def test_what_is_outside_the_safe_subset_becomes_the_hex_of_its_bytes(
    key: str, escaped: str
) -> None:
    assert escape_key(key) == escaped
    check_key(escaped)


@pytest.mark.parametrize(
    "key", ["", "/abs", "a//b", "a/", ".", "..", "a/../b", "a b", "a.b", "ä", "a\n", "a\0", "*"]
)
def test_a_key_that_readers_would_change_is_refused_by_name(key: str) -> None:
    with pytest.raises(SampleError, match=re.escape(repr(key))):
        check_key(key)


@pytest.mark.parametrize("key", ["__a__", "__a__/b", "b/__a__", "b/__a__/c"])
def test_a_key_with_a_component_that_readers_leave_out_is_refused(key: str) -> None:
    with pytest.raises(SampleError, match=f"{key}.* __x__ component"):
        check_key(key)


@pytest.mark.parametrize("key", [None, 3, b"a"])
def test_a_key_is_text(key: Any) -> None:
    with pytest.raises(SampleError, match="__key__"):
        Encoder()({"__key__": key, "txt": "a"})


def test_a_key_that_has_no_bytes_is_refused_as_a_sample() -> None:
    with pytest.raises(SampleError, match="key"):
        Encoder()({"__key__": "\ud800", "txt": "a"})


def test_a_name_of_100_bytes_is_kept_and_one_of_101_refused_with_the_remedy() -> None:
    assert Encoder()({"__key__": "k" * 96, "txt": "a"})
    with pytest.raises(SampleError, match=r"k\.txt' is longer than 100 bytes; --keys number"):
        Encoder()({"__key__": "k" * 97, "txt": "a"})


@pytest.mark.parametrize(
    "part", ["", "JPG", "a b", ".jpg", "jpg.", "a..b", "ä", "a/b", "jpg\n", "__url__"]
)
def test_a_part_that_is_no_plain_suffix_is_refused_by_name(part: str) -> None:
    with pytest.raises(SampleError, match=re.escape(repr(part))):
        Encoder()({"__key__": "a", part: b"data"})


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("txt", None),
        ("txt", "\ud800"),
        ("bin", "text"),
        ("cls", "three"),
        ("cls", 2**63),
        ("cls", float("inf")),
        ("json", {1, 2}),
        ("npy", np.array([object()])),
        ("npy", b"no array"),
        ("safetensors", 3),
        ("safetensors", b""),
        ("jpg", b"no image"),
        ("jpg", b"\xff\xd8\xff"),
        ("jpg", np.zeros((4, 4), np.uint8)),
        ("graph", "no graph"),
        ("graph", b"no tensors"),
    ],
)
def test_a_value_that_its_codec_can_not_keep_is_refused_by_key_and_part(
    part: str, value: Any
) -> None:
    with pytest.raises(SampleError, match=f"key a/b, part {part}: "):
        Encoder()({"__key__": "a/b", part: value})


def test_two_parts_of_one_suffix_are_refused() -> None:
    # Both would be `a.graph.safetensors` in the tar.
    data = Encoder()({"__key__": "a", "safetensors": {"num_nodes": np.int64(1), "x": np.ones(1)}})
    graph = data[1]["safetensors"].data
    with pytest.raises(SampleError, match="graph"):
        Encoder()({"__key__": "a", "graph": graph, "graph.safetensors": graph})


@pytest.mark.parametrize("key", ["__a", "b/__a"])
@pytest.mark.parametrize("part", ["b", "b__", "c.b__"])
def test_what_is_written_is_what_webdataset_reads(tmp_path: Path, key: str, part: str) -> None:
    writer = ss.ShardWriter(tmp_path)
    try:
        writer.write({"__key__": key, part: b"data"})
    except SampleError as error:
        assert key in str(error)  # noqa: PT017 - refused is as good as read
        return
    writer.close()
    assert read_by_webdataset(tmp_path) == [(key, {part: b"data"})]
