"""LitData's streaming loader over PyG graphs: of_litdata.py MOLECULES FOLDER BATCH WORKERS

Run in its own environment (tools/peers litdata). Packs the molecules of a `torch.save` file, then
for every line `epoch` on standard input runs one and answers with the number of graphs.
"""

import os
import sys
from functools import partial

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from torch_geometric.data import Batch


def sample(number, path):
    """One graph; the list is read once in each process."""
    if path not in READ:
        READ[path] = torch.load(path, weights_only=False)
    return READ[path][number].to_dict()


READ: dict = {}


def collated(graphs):
    from torch_geometric.data import Data

    return Batch.from_data_list([Data(**graph) for graph in graphs])


if __name__ == "__main__":
    path, folder, batch_size, workers = *sys.argv[1:3], *map(int, sys.argv[3:])
    torch.set_num_threads(1)
    count = len(torch.load(path, weights_only=False))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # it prints while it packs
    if not os.path.exists(folder):
        optimize(
            fn=partial(sample, path=path), inputs=list(range(count)), output_dir=folder,
            chunk_bytes="16MB", num_workers=workers,
        )  # fmt: skip
    loader = StreamingDataLoader(
        StreamingDataset(folder, shuffle=True), batch_size=batch_size, num_workers=workers,
        collate_fn=collated, persistent_workers=True,
    )  # fmt: skip
    for line in sys.stdin:
        if line == "end\n":
            break
        print(sum(batch.num_graphs for batch in loader), file=answers, flush=True)
