"""Packs to a real S3 server, moto's, where that is installed: `pip install s3fs 'moto[server]'`."""

from __future__ import annotations

import importlib.util
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.errors import PackError
from streamshard.store.filesystem import RemoteStore
from tests.cli.command import COMMAND, environment
from tests.pack.sources import class_folders, files_of

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask")),
    reason="needs s3fs and moto[server]",
)
URL = "s3://bucket/own"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An empty bucket of a server of its own, by environment variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        RemoteStore("s3://bucket", {}).connect().mkdir("bucket")
        yield settings
    finally:
        process.kill()
        process.wait()


def found_there() -> dict[str, bytes]:
    fs = RemoteStore(URL, {}).connect()
    return {path.removeprefix("bucket/own/"): fs.cat_file(path) for path in fs.find("bucket/own")}


def test_a_pack_to_s3_that_is_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, server: dict[str, str]
) -> None:
    photos = class_folders(tmp_path / "photos", each=200)
    options: dict[str, Any] = {"shard_size": 30_000, "format": "npy", "workers": 0}
    ss.pack_images(photos, tmp_path / "whole", **options)
    whole = files_of(tmp_path / "whole")
    flags = ("--shard-size", "30KB", "--format", "npy", "--workers", "0", "--resume")
    for _ in range(3):
        process = subprocess.Popen(
            [*COMMAND, "pack", "images", str(photos), URL, *flags],
            env=environment(**server),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(random.uniform(2.0, 4.0))
        process.kill()
        process.wait()
        found = found_there()
        assert all(data == whole[name] for name, data in found.items() if name in whole)
    if ".streamshard/pack.lock" in found:
        with pytest.raises(PackError, match=r"another pack writes there .*--resume goes on"):
            ss.pack_images(photos, URL, **options)
    ss.pack_images(photos, URL, **options, resume=True)
    assert found_there() == whole
