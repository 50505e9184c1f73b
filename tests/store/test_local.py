from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import streamshard
from streamshard.errors import StoreError
from streamshard.store.filesystem import open_store
from streamshard.store.local import LocalStore

DATA = bytes(range(256)) * 40


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    with (store := LocalStore(str(tmp_path))).create("a.bin") as file:
        file.write(DATA)
    return store


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("root can't become another user here")
    try:
        yield
    finally:
        os.seteuid(0)


class TestPlaces:
    """A path in any spelling."""

    def test_paths_and_file_urls_are_the_same_place(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(DATA)
        for place in (tmp_path, str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
            store = open_store(place)
            assert isinstance(store, LocalStore)
            assert store.where == str(tmp_path)
            assert store.map("a.bin").tobytes() == DATA

    def test_the_home_folder_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "a.bin").write_bytes(DATA)
        assert open_store("~").list() == ["a.bin"]

    def test_a_relative_path_is_relative(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.bin").write_bytes(DATA)
        assert open_store(".").list() == ["a.bin"]


class TestMap:
    """A memory map: shared, read-only, and valid for as long as it is held."""

    def test_it_is_the_files_own_pages(self, store: LocalStore, tmp_path: Path) -> None:
        mapped = store.map("a.bin")
        with (tmp_path / "a.bin").open("r+b") as file:
            file.write(b"changed")
        assert mapped[:7].tobytes() == b"changed"
        with pytest.raises(ValueError, match="read-only"):
            mapped[0] = 1

    def test_it_outlives_its_file(self, store: LocalStore) -> None:
        file = store.open("a.bin")
        mapped = file.map()
        file.close()
        store.remove("a.bin")
        assert mapped.tobytes() == DATA

    def test_an_empty_file_is_an_empty_array(self, store: LocalStore) -> None:
        with store.create("empty"):
            pass
        np.testing.assert_array_equal(store.map("empty"), np.zeros(0, np.uint8), strict=True)


class TestFiles:
    """Open files."""

    def test_a_file_that_shrinks_is_an_error_and_not_a_crash(
        self, store: LocalStore, tmp_path: Path
    ) -> None:
        file = store.open("a.bin")
        os.truncate(tmp_path / "a.bin", 100)
        assert file.read(0, 100) == DATA[:100]
        message = r"a\.bin: truncated: 50 bytes wanted at offset 80, 20 there"
        with pytest.raises(StoreError, match=message):
            file.read(80, 50)
        with pytest.raises(StoreError, match=message):
            file.read_into(80, [bytearray(50)])

    def test_what_is_written_is_sent_to_the_disk_piece_by_piece(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[tuple[int, int]] = []
        monkeypatch.setattr("streamshard.store.local._STRIDE", 10_000)
        monkeypatch.setattr(
            os, "posix_fadvise", lambda fd, at, length, how: sent.append((at, length))
        )
        with store.create("b.bin") as file:
            for _ in range(10):
                file.write(DATA[:4_000])
        assert store.open("b.bin").read(0, 40_000) == DATA[:4_000] * 10
        assert sent == [(0, 12_000), (12_000, 12_000), (24_000, 12_000)]

    def test_a_file_replaced_while_it_is_open_stays_what_it_was(self, store: LocalStore) -> None:
        file = store.open("a.bin")
        with store.create("a.bin") as new:
            new.write(b"new")
        assert file.read(0, len(DATA)) == DATA

    def test_a_closed_file_is_an_error_and_closing_twice_is_none(self, store: LocalStore) -> None:
        file = store.open("a.bin")
        file.close()
        file.close()
        with pytest.raises(StoreError):
            file.read(0, 1)

    def test_no_descriptor_is_left(self, store: LocalStore) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            store.map("a.bin")
            with store.stream("a.bin"):
                pass
            store.open("a.bin").close()
            for name in ("missing", "a.bin/x"):
                with pytest.raises(StoreError):
                    store.open(name)
        assert len(os.listdir("/proc/self/fd")) <= before


class TestCreate:
    """A file is there whole, or not at all."""

    def test_a_process_killed_while_writing_leaves_no_file_by_that_name(
        self, tmp_path: Path
    ) -> None:
        code = (
            "import os, signal, sys\n"
            "from streamshard.store.local import LocalStore\n"
            "with LocalStore(sys.argv[1]).create('a.bin') as file:\n"
            "    file.write(b'x' * 100_000)\n"
            "    file.flush()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        root = Path(streamshard.__file__).parents[1]
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root)
        assert run.returncode == -signal.SIGKILL
        store = LocalStore(str(tmp_path))
        assert not store.exists("a.bin")
        with store.create("a.bin") as file:
            file.write(b"again")
        assert store.map("a.bin").tobytes() == b"again"

    @pytest.mark.parametrize("size", [3000, 300_000], ids=["buffered", "at once"])
    def test_a_write_that_the_system_refuses_is_told_by_name_and_leaves_nothing(
        self, store: LocalStore, size: int
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # like a full disk
        try:
            with (
                pytest.raises(StoreError, match=r"f/b\.bin: File too large"),
                store.create("f/b.bin") as file,
            ):
                file.write(bytes(size))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert store.list("f") == []

    def test_the_callers_own_errors_about_files_pass(self, store: LocalStore) -> None:
        with pytest.raises(FileNotFoundError), store.create("b.bin"):
            open("/no/such/source")  # noqa: SIM115
        assert store.list() == ["a.bin"]

    def test_two_processes_may_write_the_same_file(self, tmp_path: Path) -> None:
        code = (
            "import sys\n"
            "from streamshard.store.local import LocalStore\n"
            "store = LocalStore(sys.argv[1])\n"
            "for _ in range(50):\n"
            "    with store.create('a.bin') as file:\n"
            "        file.write(sys.argv[2].encode() * 10_000)\n"
        )
        root = Path(streamshard.__file__).parents[1]
        writers = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path), letter], cwd=root)
            for letter in "xy"
        ]
        store, seen = LocalStore(str(tmp_path)), set()
        while any(writer.poll() is None for writer in writers):
            if store.exists("a.bin"):
                seen.add(store.map("a.bin").tobytes())
        assert [writer.returncode for writer in writers] == [0, 0]
        assert seen <= {b"x" * 10_000, b"y" * 10_000}
        assert store.list() == ["a.bin"]


class TestPermission:
    """What this user may not read or write is told as that."""

    @pytest.mark.parametrize("what", ["open", "map", "stream"])
    def test_a_file_that_may_not_be_read(
        self, store: LocalStore, tmp_path: Path, request: pytest.FixtureRequest, what: str
    ) -> None:
        (tmp_path / "a.bin").chmod(0)
        request.getfixturevalue("nobody")
        with pytest.raises(StoreError, match=r"a\.bin: permission denied \(user \d+\)"):
            getattr(store, what)("a.bin")

    @pytest.mark.parametrize("what", ["create", "remove", "list", "exists"])
    def test_a_folder_that_may_not_be_entered(
        self, store: LocalStore, tmp_path: Path, request: pytest.FixtureRequest, what: str
    ) -> None:
        with store.create("f/b.bin"):
            pass
        (tmp_path / "f").chmod(0)
        request.getfixturevalue("nobody")
        try:
            with pytest.raises(StoreError, match="permission denied"):  # noqa: PT012
                if what == "create":
                    with store.create("f/c.bin"):
                        pass
                else:
                    getattr(store, what)("f" if what == "list" else "f/b.bin")
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            (tmp_path / "f").chmod(0o700)
