"""MosaicML streaming's plan of one epoch: of_mosaicml.py SAMPLES NODES RANKS WORKERS BATCH SHARD

Run in its own environment (tools/peers mosaicml). These are the calls of StreamingDataset's
generate_work_random_batching for one stream that is not resampled, with its defaults: algorithms
"relaxed" and "py1e", as many canonical nodes as nodes, and the block size that follows. One worker
of each node makes them before each epoch, for all workers of the world.

Answers what its two functions took by themselves, and what the whole plan took, with the gather by
which the shuffle is applied to the partitions.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
from meter import Meter, answer

# The planner needs numpy alone; its package's __init__ imports torch, torchvision and transformers.
_root = Path(importlib.util.find_spec("streaming").origin).parent
for _name, _folder in (("streaming", _root), ("streaming.base", _root / "base")):
    sys.modules[_name] = types.ModuleType(_name)
    sys.modules[_name].__path__ = [str(_folder)]

from streaming.base.partition import get_partitions  # noqa: E402
from streaming.base.shuffle import get_shuffle  # noqa: E402

samples, nodes, ranks_per_node, workers, batch_size, per_shard = map(int, sys.argv[1:])
meter = Meter()
shards = np.full(samples // per_shard, per_shard)
# (nodes, ranks per node, workers per rank, batches per worker, batch size)
ids = get_partitions(
    "relaxed", samples, nodes, nodes, ranks_per_node, workers, batch_size, 0, nodes
)
shuffle = get_shuffle("py1e", shards, nodes, 9176, 0, max(4_000_000 // nodes, 1 << 18))
functions = {"seconds": meter.seconds(), "MB": meter.peak()}
ids = np.where(ids != -1, shuffle[ids], -1)
batch = ids[0, 0, 0, 0]
whole = {"whole seconds": meter.seconds(), "whole MB": meter.peak()}
assert batch.shape == (batch_size,)
assert len(np.unique(ids[ids != -1])) == samples, "not every sample is planned"
answer(**functions, **whole)
