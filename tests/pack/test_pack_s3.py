"""Packs to and from a real S3 server: killed ones go on, tables and tars too."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.errors import PackError
from tests.cli.command import COMMAND, environment
from tests.pack.sources import class_folders, files_of
from tests.s3 import files_at, keys_of


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_pack_to_s3_that_is_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, s3_port: int, s3_url: str, kills: int
) -> None:
    photos = class_folders(tmp_path / "photos", each=100)
    options: dict[str, Any] = {"shard_size": 30_000, "format": "npy", "workers": 0}
    ss.pack_images(photos, tmp_path / "whole", **options)
    whole = files_of(tmp_path / "whole")
    flags = ("--shard-size", "30KB", "--format", "npy", "--workers", "0", "--resume")
    for _ in range(kills):
        process = subprocess.Popen(
            [*COMMAND, "pack", "images", str(photos), s3_url, *flags],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        shards = random.randint(1, 5)
        while process.poll() is None and sum(k.endswith("tar") for k in keys_of(s3_port)) < shards:
            time.sleep(0.01)
        process.kill()
        process.wait()
        found = files_at(s3_url)
        assert all(data == whole[name] for name, data in found.items() if name in whole)
    if ".streamshard/pack.lock" in found:
        with pytest.raises(PackError, match=r"another pack writes there .*--resume goes on"):
            ss.pack_images(photos, s3_url, **options)
    ss.pack_images(photos, s3_url, **options, resume=True)
    assert files_at(s3_url) == whole
