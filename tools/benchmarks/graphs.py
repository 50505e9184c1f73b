"""Random molecules of about 23 nodes, batches of 128."""

from pathlib import Path

import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from turns import Run, epoch, in_turns, report

import streamshard as ss


def make_molecules(count: int) -> list[Data]:
    """Random graphs with the sizes and fields of ZINC's molecules in PyG."""
    rng = torch.Generator().manual_seed(0)
    sizes = torch.randint(16, 31, (count,), generator=rng).tolist()
    return [
        Data(
            x=torch.randint(0, 9, (nodes, 9), generator=rng).float(),
            edge_index=torch.randint(0, nodes, (2, 2 * nodes + 4), generator=rng),
            edge_attr=torch.randint(0, 4, (2 * nodes + 4, 3), generator=rng),
            y=torch.tensor([float(nodes)]),
        )
        for nodes in sizes
    ]


def contestants(folder: Path, workers: int) -> dict[str, Run]:
    molecules = make_molecules(20_000)
    ss.pack_graphs(molecules, folder / "packed", shard_size="16MB")
    torch.set_num_threads(1)
    dataset = ss.ShardDataset(
        folder / "packed", batch_size=128, shuffle=True, parts="graph", tail="exact"
    )

    def of_streamshard(count: int) -> Run:
        loader = ss.StreamLoader(dataset, num_workers=count)
        return lambda: epoch(loader, lambda batch: batch.num_graphs)

    def of_pyg(count: int) -> Run:
        common = {"persistent_workers": True, "prefetch_factor": 4} if count else {}
        loader = DataLoader(molecules, batch_size=128, shuffle=True, num_workers=count, **common)
        return lambda: epoch(loader, lambda batch: batch.num_graphs)

    return {
        f"streamshard, {workers} workers": of_streamshard(workers),
        f"PyG in memory, {workers} workers": of_pyg(workers),
        "streamshard, no workers": of_streamshard(0),
        "PyG in memory, no workers": of_pyg(0),
    }


def measure(folder: Path, workers: int, rounds: int) -> dict[str, float]:
    return report(in_turns(contestants(folder, workers), rounds))
