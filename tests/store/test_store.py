from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamshard.errors import NotFoundError, StoreError
from streamshard.store.base import Store
from streamshard.store.filesystem import RemoteStore, open_store
from tests import s3

DATA = bytes(range(40))


@pytest.fixture(scope="module")
def s3_connected(s3_port: int) -> RemoteStore:
    """A store that is connected once, since that takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.settings_of(s3_port).items():
            patch.setenv(name, value)
        return RemoteStore("s3://bucket/own", {})


@pytest.fixture
def s3_store(s3_connected: RemoteStore, s3_url: str) -> RemoteStore:
    """The same, empty."""
    s3_connected.connect().invalidate_cache()
    return s3_connected


@pytest.fixture(params=["local", "memory", "fsspec", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """An empty store of every kind; temporary files have a folder of their own to be found in."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    if request.param == "s3":
        yield request.getfixturevalue("s3_store")
        return
    root, options = {
        "local": (str(tmp_path / "root"), None),
        "memory": (f"memory://{uuid.uuid4().hex}", None),
        # The local disk, by way of fsspec.
        "fsspec": (f"local://{tmp_path}/root", {"auto_mkdir": True}),
    }[request.param]
    yield open_store(root, options)
    assert list((tmp_path / "temporary").iterdir()) == []


def is_s3(store: Store) -> bool:
    return store.where.startswith("s3:")


def write(store: Store, name: str, data: bytes = DATA) -> None:
    with store.create(name) as file:
        file.write(data)


def use(store: Store, what: str, name: str) -> None:
    if what == "create":
        write(store, name)
    else:
        getattr(store, what)(name)


class Interrupted(BaseException):
    """Like a KeyboardInterrupt: no Exception."""


class TestEveryStore:
    """What any store does, wherever its bytes live."""

    @pytest.mark.parametrize("name", ["a.bin", "f/g/a.bin", ".hidden/a", "a b#c?d%20ä.bin"])
    @pytest.mark.parametrize("data", [b"", b"x", DATA * 5000], ids=len)
    def test_what_is_created_is_read(self, store: Store, name: str, data: bytes) -> None:
        write(store, name, data)
        assert store.exists(name)
        mapped = store.map(name)
        np.testing.assert_array_equal(mapped, np.frombuffer(data, np.uint8), strict=True)
        with store.stream(name) as file:
            assert file.read() == data
        opened = store.open(name)
        assert opened.size == len(data)
        assert opened.read(0, len(data)) == data
        whole = opened.map()
        assert whole is None or whole.tobytes() == data
        opened.close()

    def test_a_file_appears_when_it_is_whole(self, store: Store) -> None:
        with store.create("a.bin") as file:
            file.write(DATA)
            file.flush()
            assert not store.exists("a.bin")
            assert "a.bin" not in store.list()
            with pytest.raises(NotFoundError):
                store.open("a.bin")
        assert store.list() == ["a.bin"]

    @pytest.mark.parametrize("error", [RuntimeError, OSError, Interrupted])
    def test_an_error_inside_leaves_nothing(self, store: Store, error: type[BaseException]) -> None:
        with pytest.raises(error if error is not OSError else (OSError, StoreError)):  # noqa: SIM117, PT012
            with store.create("f/a.bin") as file:
                file.write(DATA)
                raise error("stop")
        assert not store.exists("f/a.bin")
        assert store.list("f") == []

    def test_an_error_inside_leaves_the_file_that_was_there(self, store: Store) -> None:
        write(store, "a.bin", b"old")
        with pytest.raises(RuntimeError), store.create("a.bin") as file:  # noqa: PT012
            file.write(DATA)
            raise RuntimeError
        assert store.map("a.bin").tobytes() == b"old"
        assert store.list() == ["a.bin"]

    def test_a_file_is_replaced_whole(self, store: Store) -> None:
        write(store, "a.bin", b"old and longer")
        write(store, "a.bin", b"new")
        assert store.map("a.bin").tobytes() == b"new"
        assert store.open("a.bin").size == 3

    def test_every_range_is_read(self, store: Store) -> None:
        write(store, "a.bin")
        file = store.open("a.bin")
        for offset in (0, 1, 2, 20, 38, 39, 40):
            for length in {0, 1, 2, len(DATA) - offset}:
                if length <= len(DATA) - offset:
                    assert file.read(offset, length) == DATA[offset : offset + length]
        file.close()

    def test_buffers_are_filled_one_after_another(self, store: Store) -> None:
        write(store, "a.bin")
        file, first, memory = store.open("a.bin"), bytearray(4), memoryview(bytearray(40))
        file.read_into(3, [first, memory[2:2], memory[2:30]])
        assert first == DATA[3:7]
        assert memory == bytes(2) + DATA[7:35] + bytes(10)
        with pytest.raises(StoreError, match=r"a\.bin: .*44 bytes wanted at offset 3"):
            file.read_into(3, [first, memory])
        with pytest.raises(StoreError):
            file.read_into(-3, [first])
        file.close()

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 41), (39, 2), (40, 1), (100, 1), (0, 10**9)]
    )
    def test_reading_past_the_end_is_an_error(self, store: Store, offset: int, length: int) -> None:
        write(store, "a.bin")
        with pytest.raises(
            StoreError, match=rf"a\.bin: .*{length} bytes wanted at offset {offset}"
        ):
            store.open("a.bin").read(offset, length)

    @pytest.mark.parametrize(("offset", "length"), [(-5, 3), (-5, 5), (-1, 1), (3, -1), (0, -1)])
    def test_a_negative_offset_or_length_is_an_error(
        self, store: Store, offset: int, length: int
    ) -> None:
        write(store, "a.bin")
        with pytest.raises(StoreError):
            store.open("a.bin").read(offset, length)

    def test_a_stream_can_seek(self, store: Store) -> None:
        write(store, "a.bin")
        with store.stream("a.bin") as file:
            assert file.seek(0, 2) == len(DATA)
            assert file.seek(7) == 7
            assert file.read(5) == DATA[7:12]
            assert file.tell() == 12

    def test_a_list_is_sorted_and_names_files_and_folders_of_one_level(self, store: Store) -> None:
        for name in ("b.bin", "a/y", "a/x", "c/d/e", ".hidden", "B.bin"):
            write(store, name)
        assert store.list() == [".hidden", "B.bin", "a", "b.bin", "c"]
        assert store.list("a") == ["x", "y"]
        assert store.list("c") == ["d"]

    def test_a_list_of_nothing_is_empty(self, store: Store) -> None:
        assert store.list() == []
        assert store.list("no/such") == []
        write(store, "a.bin")
        assert store.list("no/such") == []

    def test_a_file_has_no_list(self, store: Store) -> None:
        write(store, "a.bin")
        try:
            assert store.list("a.bin") == []
        except StoreError:
            return

    def test_exists_is_for_files(self, store: Store) -> None:
        assert not store.exists("f/a.bin")
        write(store, "f/a.bin")
        assert store.exists("f/a.bin")
        assert not store.exists("f")
        assert not store.exists("")
        assert not store.exists("f/a.bin/b")

    def test_remove_removes_one_file(self, store: Store) -> None:
        write(store, "f/a.bin")
        write(store, "f/b.bin")
        store.remove("f/a.bin")
        assert store.list("f") == ["b.bin"]
        if not is_s3(store):
            with pytest.raises(NotFoundError):
                store.remove("f/a.bin")

    @pytest.mark.parametrize("what", ["open", "map", "stream", "remove"])
    def test_what_is_missing_is_told_by_name(self, store: Store, what: str) -> None:
        if what == "remove" and is_s3(store):
            pytest.skip("S3 does not say whether there was one")
        with pytest.raises(NotFoundError) as caught:
            getattr(store, what)("f/a.bin")
        assert str(caught.value) == f"{store.where}/f/a.bin: not found"

    @pytest.mark.parametrize("what", ["open", "map", "stream", "remove", "create"])
    def test_a_folder_is_no_file(self, store: Store, what: str) -> None:
        if is_s3(store) and what not in ("open", "map"):
            pytest.skip("S3 has no folders")
        write(store, "f/a.bin")
        with pytest.raises(StoreError, match=f"^{store.where}/f: "):
            use(store, what, "f")
        assert store.list("f") == ["a.bin"]

    @pytest.mark.parametrize("what", ["open", "map", "stream", "remove", "create"])
    @pytest.mark.parametrize("name", ["a.bin/x", "a.bin/x/y"])
    def test_a_file_is_no_folder(self, store: Store, what: str, name: str) -> None:
        if is_s3(store) and what in ("remove", "create"):
            pytest.skip("S3 has no folders")
        write(store, "a.bin")
        with pytest.raises(StoreError, match=f"^{store.where}/{name}: "):
            use(store, what, name)
        assert store.list() == ["a.bin"]

    def test_stores_of_neighbouring_names_keep_apart(self, store: Store) -> None:
        url = getattr(store, "_url", store.where)
        options = getattr(store, "_options", None)
        write(open_store(f"{url}2", options), "a.bin")
        assert store.list() == []
        assert not store.exists("a.bin")
        assert open_store(f"{url}2/", options).map("a.bin").tobytes() == DATA

    def test_only_a_local_file_says_that_it_is_local(
        self, store: Store, request: pytest.FixtureRequest
    ) -> None:
        write(store, "a.bin")
        is_local = request.node.callspec.params["store"] == "local"
        assert store.open("a.bin").local is is_local
        assert (store.open("a.bin").map() is not None) is is_local
