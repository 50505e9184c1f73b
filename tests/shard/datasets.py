"""Small manifests for the tests, in memory."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamshard.shard.manifest import Manifest, Part, Shard, ShardTable


class Files(dict[str, bytes]):
    """Whole small files by name."""

    def map(self, name: str) -> NDArray[np.uint8]:
        return np.frombuffer(self[name], np.uint8)


def shard(number: int, samples: int = 10, name: str | None = None) -> Shard:
    digest = hashlib.sha256(b"%d" % number).digest()
    name = f"shard-{number:06d}.tar" if name is None else name
    return Shard(name, samples, 1000, digest, digest[::-1])


def small() -> Manifest:
    parts = {
        "jpg": Part("jpg", "image", {"size": [32, 48]}),
        "cls": Part("cls", "int", optional=True),
    }
    return Manifest(parts, ShardTable.of([shard(0), shard(1, 7)]), ["cat", "dog"])


def meaning(manifest: Manifest) -> Any:
    return dict(manifest.parts), list(manifest.table), manifest.classes, manifest.fingerprint
