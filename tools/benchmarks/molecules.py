"""Molecules to measure on: random ones of ZINC's sizes, or real ones from a file of SMILES."""

from pathlib import Path

import torch
from torch_geometric.data import Data


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


def read_molecules(path: Path, count: int) -> list[Data]:
    """The first molecules with bonds of a file of SMILES, one a line, as PyG's `from_smiles`."""
    from rdkit import RDLogger
    from torch_geometric.utils import from_smiles

    RDLogger.DisableLog("rdApp.*")
    molecules = []
    for line in path.read_text().splitlines():
        graph = from_smiles(line.strip())
        if graph.edge_index.numel():
            graph.x, graph.y = graph.x.float(), torch.tensor([float(graph.num_nodes)])
            del graph["smiles"]
            molecules.append(graph)
        if len(molecules) == count:
            break
    return molecules
