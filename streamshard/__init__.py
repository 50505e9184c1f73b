"""Pack images and graphs into tar shards once; stream them into PyTorch training.

The public names, bound when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Batch": "streamshard.stream.batch",
    "Budget": "streamshard.plan.budget",
    "CenterCrop": "streamshard.codec.crop",
    "Decode": "streamshard.codec.crop",
    "GpuDecode": "streamshard.stream.gpu_decode",
    "Graphs": "streamshard.stream.choice",
    "Mixture": "streamshard.stream.mixture",
    "Normalize": "streamshard.stream.normalize",
    "PackOptions": "streamshard.pack.options",
    "RandomResizedCrop": "streamshard.codec.crop",
    "Resize": "streamshard.codec.crop",
    "ShardDataset": "streamshard.stream.dataset",
    "ShardWriter": "streamshard.pack.writer",
    "StreamLoader": "streamshard.stream.loader",
    "World": "streamshard.plan.share",
    "errors": "streamshard.errors",
    "index_tars": "streamshard.pack.index",
    "open": "streamshard.stream.reader",
    "pack_graphs": "streamshard.pack.graphs",
    "pack_images": "streamshard.pack.images",
    "pack_mds": "streamshard.pack.mds",
    "pack_parquet": "streamshard.pack.parquet",
    "pack_table": "streamshard.pack.table",
    "pack_tars": "streamshard.pack.tars",
    "webdataset_source": "streamshard.stream.webdataset",
}

__all__ = [
    "Batch",
    "Budget",
    "CenterCrop",
    "Decode",
    "GpuDecode",
    "Graphs",
    "Mixture",
    "Normalize",
    "PackOptions",
    "RandomResizedCrop",
    "Resize",
    "ShardDataset",
    "ShardWriter",
    "StreamLoader",
    "World",
    "errors",
    "index_tars",
    "open",
    "pack_graphs",
    "pack_images",
    "pack_mds",
    "pack_parquet",
    "pack_table",
    "pack_tars",
    "webdataset_source",
]

if TYPE_CHECKING:
    from streamshard import errors
    from streamshard.codec.crop import CenterCrop, Decode, RandomResizedCrop, Resize
    from streamshard.pack.graphs import pack_graphs
    from streamshard.pack.images import pack_images
    from streamshard.pack.index import index_tars
    from streamshard.pack.mds import pack_mds
    from streamshard.pack.options import PackOptions
    from streamshard.pack.parquet import pack_parquet
    from streamshard.pack.table import pack_table
    from streamshard.pack.tars import pack_tars
    from streamshard.pack.writer import ShardWriter
    from streamshard.plan.budget import Budget
    from streamshard.plan.share import World
    from streamshard.stream.batch import Batch
    from streamshard.stream.choice import Graphs
    from streamshard.stream.dataset import ShardDataset
    from streamshard.stream.gpu_decode import GpuDecode
    from streamshard.stream.loader import StreamLoader
    from streamshard.stream.mixture import Mixture
    from streamshard.stream.normalize import Normalize
    from streamshard.stream.reader import Shards as open
    from streamshard.stream.webdataset import webdataset_source


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = home if name == "errors" else getattr(home, "Shards" if name == "open" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
