"""The last step of a pack: the manifest, with which the dataset exists."""

from __future__ import annotations

import dataclasses
import hashlib

from streamshard.shard.manifest import Manifest
from streamshard.shard.sizes import SIZES, SizesBuilder
from streamshard.store.base import Store


def write_manifest(store: Store, manifest: Manifest, sizes: SizesBuilder) -> Manifest:
    """Publish a dataset: the sizes of its graphs where it has any, the shard table, then the head.

    Returns:
        The manifest as it was written.
    """
    manifest, files = manifest_files(manifest, sizes)
    for name, data in files.items():
        with store.create(name) as file:
            file.write(data)
    return manifest


def manifest_files(
    manifest: Manifest, sizes: SizesBuilder | None
) -> tuple[Manifest, dict[str, bytes]]:
    """What `write_manifest` writes, by name and in order; without sizes of graphs where None."""
    files = {}
    if sizes and sizes.has_graphs:
        files[SIZES] = sizes.to_bytes()
        digest = hashlib.sha256(files[SIZES]).hexdigest()
        manifest = dataclasses.replace(manifest, sizes_sha256=digest)
    return manifest, {**files, **manifest.to_files()}
