"""Shards as webdataset, Python's tarfile, GNU tar and streamshard read them: the same bytes."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamshard as ss
from streamshard.errors import SampleError
from streamshard.pack.encode import escape_key
from tests.pack.sources import (
    Samples,
    class_folders,
    read_by_gnu_tar,
    read_by_streamshard,
    read_by_tarfile,
    read_by_webdataset,
    ring,
)

_COMPONENT = re.compile(r"[A-Za-z0-9_%+=,@~-]+")
_SAFE = string.ascii_letters + string.digits + "_/%+=,@~-"

hard_keys = st.one_of(
    st.text(_SAFE, max_size=20),
    st.text(max_size=20),  # any Unicode
    st.text("ab./ _%\\\t\n", max_size=12),  # dots, spaces, `..`, absolute paths, `__x__`
    st.sampled_from(["../../up", "/abs/olute", "..", ".", "./here", "a//b", "__meta__", "x.1.jpg"]),
    st.sampled_from(["Key", "key", "KEY", "kEy/Key", "kEy/key"]),
    st.text("ab/", min_size=1, max_size=4).map(lambda text: text * 90),  # up to 360 characters
)


def keys_are_kept(key: str) -> bool:
    """The rule for keys, said a second time."""
    components = key.split("/")
    return (
        all(_COMPONENT.fullmatch(part) for part in components)
        and not any(part.startswith("__") and part.endswith("__") for part in components)
        and len(f"{key}.data.bin") <= 100
    )


def lists_of_keys(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A law of so many lists of at least 40 keys each."""
    keys = st.lists(hard_keys, min_size=40, max_size=60, unique=True)
    quiet = settings(
        max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    return lambda law: quiet(given(keys=keys, data=st.data())(law))


@lists_of_keys(60)
def test_every_key_is_read_alike_by_all_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], data: st.DataObject
) -> None:
    assert_kept_or_refused(tmp_path_factory.mktemp("keys"), keys, data)


@pytest.mark.slow
@lists_of_keys(250)
def test_ten_thousand_keys_are_read_alike_by_all_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], data: st.DataObject
) -> None:
    assert_kept_or_refused(tmp_path_factory.mktemp("keys"), keys, data)


def assert_kept_or_refused(root: Path, keys: list[str], data: st.DataObject) -> None:
    written: Samples = []
    tried: set[str] = set()
    contents = iter(data.draw(st.lists(st.binary(max_size=700), min_size=1, max_size=6)) * 200)
    with ss.ShardWriter(root / "own", shard_size=20_000) as writer:
        for key in _as_they_are_and_escaped(keys):
            if key in tried:
                continue
            tried.add(key)
            parts = {"data.bin": next(contents), "txt": repr(key).encode()}
            if keys_are_kept(key):
                writer.write({"__key__": key, **parts})
                written.append((key, parts))
            else:
                with pytest.raises(SampleError) as refused:
                    writer.write({"__key__": key, **parts})
                assert repr(key) in str(refused.value) or key in str(refused.value)
        if not written:
            writer.write({"__key__": "one", "data.bin": b"", "txt": b""})
            written.append(("one", {"data.bin": b"", "txt": b""}))
    assert len(tried) >= 40
    assert_read_alike(root / "own", root / "scratch", written)


def _as_they_are_and_escaped(keys: list[str]) -> Iterator[str]:
    for key in keys:
        yield key
        yield escape_key(key)


def assert_read_alike(folder: Path, scratch: Path, expected: Samples) -> None:
    """The parity law."""
    assert read_by_streamshard(str(folder)) == expected
    assert read_by_webdataset(folder) == expected
    assert read_by_tarfile(folder) == expected
    assert read_by_gnu_tar(folder, scratch) == expected


def test_images_are_read_alike_by_all(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "photos")
    ss.pack_images(source, tmp_path / "own", shard_size=6_000)
    assert len(list((tmp_path / "own").glob("*.tar"))) > 2
    expected: Samples = [
        (key, {"png": (source / f"{key}.png").read_bytes(), "cls": b"%d" % "abc".index(key[0])})
        for key in ss.open(str(tmp_path / "own")).keys()  # noqa: SIM118 - it is no dict
    ]
    assert len(expected) == 15
    assert_read_alike(tmp_path / "own", tmp_path / "scratch", expected)


def test_graphs_are_read_alike_by_all(tmp_path: Path) -> None:
    graphs = [ring(nodes, name=f"ring of {nodes}") for nodes in range(1, 30)]
    ss.pack_graphs(graphs, tmp_path / "own", shard_size=20_000)
    found = read_by_streamshard(str(tmp_path / "own"))
    assert {tuple(parts) for _, parts in found} == {("graph.safetensors", "json")}
    assert sorted(key for key, _ in found) == [f"{number:06d}" for number in range(29)]
    assert_read_alike(tmp_path / "own", tmp_path / "scratch", found)


def test_an_empty_part_and_one_of_a_whole_block_are_read_alike_by_all(tmp_path: Path) -> None:
    samples: Samples = [
        ("none", {"bin": b""}),
        ("block", {"bin": bytes(512)}),
        ("more", {"bin": bytes(range(256)) * 2 + b"\0"}),
    ]
    with ss.ShardWriter(tmp_path / "own") as writer:
        for key, parts in samples:
            writer.write({"__key__": key, **parts})
    assert_read_alike(tmp_path / "own", tmp_path / "scratch", samples)
