"""A real S3 server on this machine: moto's, as a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import fsspec


def settings_of(port: int) -> dict[str, str]:
    """The environment variables by which every S3 client finds the server."""
    return {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }


@contextlib.contextmanager
def running_server() -> Iterator[int]:
    """The port of a server that runs meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, "moto's server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("moto's server never answered")


def reset(port: int) -> None:
    """Take everything out of the server, and put an empty bucket there."""
    _ask(port, "POST", "/moto-api/reset")
    _ask(port, "PUT", "/bucket")


def keys_of(port: int) -> list[str]:
    """The objects in the bucket, without any client's memory of them."""
    return re.findall("<Key>(.*?)</Key>", _ask(port, "GET", "/bucket?list-type=2"))


def _ask(port: int, method: str, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path)
        return connection.getresponse().read().decode()


def files_at(url: str) -> dict[str, bytes]:
    """Every object below a URL."""
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=not url.startswith("memory:"))
    return {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in fs.find(root)}
