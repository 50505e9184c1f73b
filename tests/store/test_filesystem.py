from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

import streamshard
from streamshard.errors import StoreError, StreamshardError, UsageError
from streamshard.store.base import redact
from streamshard.store.filesystem import RemoteStore, open_store

SECRET = "hunter2"
ROOT = Path(streamshard.__file__).parents[1]


def in_another_process(code: str, data: bytes = b"") -> str:
    """What a fresh Python prints."""
    run = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, cwd=ROOT, timeout=60
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode() + run.stderr.decode()


class TestSecrets:
    """Nothing that may be a secret gets into a message."""

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://host/data", "https://host/data"),
            ("https://me:hunter2@host/data", "https://host/data"),
            ("https://hunter2@host/data", "https://host/data"),
            ("https://me:hun@ter2@host:80/data", "https://host:80/data"),
            ("https://host/data?token=hunter2", "https://host/data"),
            ("https://host/data#hunter2", "https://host/data"),
            ("s3://key:hunter2@bucket/a/b?versionId=hunter2#x", "s3://bucket/a/b"),
            ("memory://a/b", "memory://a/b"),
            ("local:///a/b", "local:///a/b"),
            ("/plain/path?x=1#y@z", "/plain/path?x=1#y@z"),
            ("relative", "relative"),
        ],
    )
    def test_a_url_is_shown_without_them(self, url: str, shown: str) -> None:
        assert redact(url) == shown
        assert redact(shown) == shown

    @pytest.mark.parametrize(
        "url",
        [
            "simplecache::https://me:hunter2@host/data?token=hunter2",
            "zip://a.zip::s3://key:hunter2@bucket/x",
            "https://me:hunter2@host/x::memory://y?token=hunter2",
        ],
    )
    def test_a_chain_of_urls_is_shown_without_them(self, url: str) -> None:
        assert SECRET not in redact(url)

    @pytest.mark.parametrize(
        "url",
        [
            "nosuch://me:hunter2@host/data?token=hunter2",
            "simplecache::https://me:hunter2@host/data?token=hunter2",
            "https://me:hunter2@host/data?token=hunter2::memory://x",
            "pipe://cat?token=hunter2",
            "http://me:hunter2@[bad/x?token=hunter2",
            "s3n0://key:hunter2@bucket",
            "ftp://me:hunter2@127.0.0.1:1/data",
        ],
    )
    def test_an_error_of_opening_holds_none(self, url: str) -> None:
        with pytest.raises(StreamshardError) as caught:
            open_store(url, {})
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_an_error_of_reading_holds_none(self) -> None:
        store = open_store("memory://me:hunter2@host/data?token=hunter2", {"key": SECRET})
        for call in (store.open, store.map, store.stream, store.remove):
            with pytest.raises(StoreError) as caught:
                call("a.bin")
            assert SECRET not in str(caught.value)

    def test_an_http_server_that_refuses_is_a_store_error_without_them(self) -> None:
        pytest.importorskip("aiohttp")
        code = """
import http.server, threading
from streamshard.errors import StoreError
from streamshard.store.filesystem import open_store

class Refuse(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(403)
    do_HEAD = do_GET
    def log_message(self, *args):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Refuse)
threading.Thread(target=server.serve_forever, daemon=True).start()
port = server.server_address[1]
url = f"http://me:hunter2@127.0.0.1:{port}/data?token=hunter2"
store = open_store(url, {"headers": {"X": "hunter2"}})
for call in (store.map, store.open, store.stream):
    try:
        call("a.bin")
    except BaseException as error:
        print(isinstance(error, StoreError), "hunter2" in str(error))
"""
        assert in_another_process(code) == "True False\n" * 3

    def test_a_repr_holds_no_options(self) -> None:
        store = open_store("memory://me:hunter2@host/data?token=hunter2", {"key": SECRET})
        assert repr(store) == "RemoteStore('memory://host/data')"
        assert SECRET not in f"{store} {store.where}"


class TestRefused:
    """A URL is a place, never a command or a chain."""

    @pytest.mark.parametrize("url", ["pipe://touch sings", "nosuch://x", "exec://touch sings"])
    def test_an_unknown_protocol_is_refused_by_name(self, url: str) -> None:
        with pytest.raises(UsageError, match="Protocol not known"):
            open_store(url)

    @pytest.mark.parametrize(
        "url",
        [
            "simplecache::memory://x",
            "filecache::s3://bucket/x",
            "zip://a.bin::memory://x.zip",
            "memory://a::memory://b",
            "pipe:touch sings::memory://x",
        ],
    )
    def test_a_chain_is_refused(self, url: str) -> None:
        with pytest.raises(UsageError, match="chained URLs are not read"):
            open_store(url)

    def test_a_malformed_url_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"^http://\[bad"):
            open_store("http://[bad")

    def test_a_protocol_whose_package_is_missing_names_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "s3fs", None)
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
        with pytest.raises(StoreError, match=r"s3fs.*pip install 'streamshard\[s3\]'"):
            open_store("s3://bucket/x")

    @pytest.mark.parametrize(
        "url",
        [
            "pipe:touch sings",
            "pipe://touch sings",
            "|touch sings",
            "$(touch sings)",
            "`touch sings`",
        ],
    )
    def test_no_url_runs_a_command(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        try:
            store = open_store(url)
            assert store.list() == []
            assert not store.exists("a.bin")
        except StreamshardError:
            pass
        assert list(tmp_path.iterdir()) == []


class PidFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Every file holds the number of the process that made the file system."""

    protocol = "pid"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._made_in = os.getpid()

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        return b"%d" % self._made_in


def test_a_folder_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    store = open_store(f"local://{tmp_path}/new")
    with store.create("f/a.bin") as file:
        file.write(b"hello")
    assert (tmp_path / "new/f/a.bin").read_bytes() == b"hello"


class TestProcesses:
    """A remote store goes to other processes and connects there."""

    def test_a_pickled_store_reads_in_another_process(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(b"hello")
        store = open_store(f"local://{tmp_path}", {"auto_mkdir": True})
        code = """
import pickle, sys
store = pickle.loads(sys.stdin.buffer.read())
print(store.map("a.bin").tobytes().decode(), store.list(), store.open("a.bin").read(1, 3).decode())
"""
        assert in_another_process(code, pickle.dumps(store)) == "hello ['a.bin'] ell\n"

    def test_a_copy_has_the_same_place_and_options(self) -> None:
        store = open_store("memory://copied", {"key": SECRET})
        with store.create("a.bin") as file:
            file.write(b"hello")
        copy = pickle.loads(pickle.dumps(store))
        assert (repr(copy), copy.where) == (repr(store), store.where)
        assert copy.map("a.bin").tobytes() == b"hello"

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_process_connects_anew(self) -> None:
        fsspec.register_implementation("pid", PidFileSystem, clobber=True)
        store = RemoteStore("pid://x", {})
        assert store.map("a").tobytes() == b"%d" % os.getpid()
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:  # never returns into the test
            try:
                os.write(send, store.map("a").tobytes())
            finally:
                os._exit(0)
        os.close(send)
        os.waitpid(child, 0)
        with open(receive, "rb") as pipe:
            assert pipe.read() == b"%d" % child
        assert store.map("a").tobytes() == b"%d" % os.getpid()
