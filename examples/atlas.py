"""The graph atlas as PyG graphs, each with its number of triangles: specs for `pack graphs`.

    streamshard pack graphs examples/atlas.py:train DST --allow-empty

All 1,253 graphs of up to seven nodes (Read and Wilson, "An Atlas of Graphs", 1998) from networkx;
the first is empty, and every fifth is for testing.
"""

import networkx as nx
import torch
from torch_geometric.data import Data


def train() -> list[Data]:
    return [data(graph) for number, graph in enumerate(nx.graph_atlas_g()) if number % 5]


def test() -> list[Data]:
    return [data(graph) for number, graph in enumerate(nx.graph_atlas_g()) if number % 5 == 0]


def data(graph: nx.Graph) -> Data:
    """Node features: one-hot degree, 0 to 6. Target: the number of triangles."""
    edges = [(a, b) for a, b in graph.edges] + [(b, a) for a, b in graph.edges]
    degrees = torch.tensor([degree for _, degree in graph.degree], dtype=torch.int64)
    return Data(
        x=torch.nn.functional.one_hot(degrees, 7).float(),
        edge_index=torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        y=torch.tensor([sum(nx.triangles(graph).values()) / 3]),
    )
