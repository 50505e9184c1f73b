"""Train a GNN on one large graph, in pieces: Cluster-GCN (Chiang et al. 2019) from shards.

    python examples/train_clusters.py data/clusters

Makes a graph of 20,000 nodes in 400 communities (a stochastic block model), cuts it into 200 parts,
packs these, and learns the class of each node: that of its community, which a node's own features
hardly tell, and its neighbours' together do. A batch is some of the parts, drawn anew every epoch;
the edges between parts are left out. Half of the nodes are for training, the others for testing.
"""

import argparse
import heapq
import os
import time

import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import ClusterData
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import to_undirected

import streamshard as ss

CLASSES = 8


def make_graph(nodes: int = 20_000, communities: int = 400, features: int = 16) -> Data:
    """About ten edges a node inside its community, and two to anywhere."""
    draw = torch.Generator().manual_seed(0)
    community = torch.arange(nodes) % communities
    size = nodes // communities
    begin = torch.arange(nodes).repeat_interleave(5)
    inside = torch.randint(size, begin.shape, generator=draw) * communities + community[begin]
    pairs = [torch.stack([begin, inside]), torch.randint(nodes, (2, nodes), generator=draw)]
    y = (community * 7) % CLASSES
    signal = torch.randn(CLASSES, features, generator=draw)[y] * 0.2
    return Data(
        x=signal + torch.randn(nodes, features, generator=draw),
        edge_index=to_undirected(torch.cat(pairs, 1), num_nodes=nodes),
        y=y,
        train=torch.rand(nodes, generator=draw) < 0.5,
    )


def cut(graph: Data, parts: int):
    """PyG's partitions by METIS where that is installed, else parts that are grown."""
    try:
        return ClusterData(graph, parts, log=False)
    except ImportError:  # METIS comes with pyg-lib or torch-sparse
        return [graph.subgraph(nodes) for nodes in grown(graph, parts)]


def grown(graph: Data, parts: int) -> list[torch.Tensor]:
    """Parts of one size: the next node is always one with the most edges into the part."""
    order = graph.edge_index[0].argsort()
    degrees = graph.edge_index[0].bincount(minlength=graph.num_nodes)
    neighbours = [found.tolist() for found in graph.edge_index[1][order].split(degrees.tolist())]
    free, size = dict.fromkeys(range(graph.num_nodes)), -(-graph.num_nodes // parts)
    found = []
    while free:
        part, edges, border = [], {}, []
        while free and len(part) < size:
            node = heapq.heappop(border)[1] if border else next(iter(free))
            if node not in free:
                continue
            del free[node]
            part.append(node)
            for other in neighbours[node]:
                edges[other] = edges.get(other, 0) + 1
                heapq.heappush(border, (-edges[other], other))
        found.append(torch.tensor(part).sort().values)
    return found


class Model(nn.Module):
    """Two rounds of message passing (GraphSAGE, Hamilton et al. 2017)."""

    def __init__(self, features: int, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(features, width), SAGEConv(width, CLASSES)

    def forward(self, batch) -> torch.Tensor:
        return self.second(self.first(batch.x, batch.edge_index).relu(), batch.edge_index)


@torch.no_grad()
def accuracy(model: nn.Module, loader) -> float:
    """Over the nodes for testing."""
    hits = [(model(batch).argmax(1) == batch.y)[~batch.train] for batch in loader]
    return float(torch.cat(hits).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=10, help="parts in a batch")
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()

    if not os.path.exists(args.shards):
        begin = time.perf_counter()
        graph = make_graph()
        parts = cut(graph, 200)
        ss.pack_graphs(parts, args.shards, shard_size="1MB")
        kept = sum(part.num_edges for part in parts) / graph.num_edges
        seconds = time.perf_counter() - begin
        print(f"{len(parts)} parts with {kept:.0%} of the edges, packed in {seconds:.1f} s")

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaders = [
        ss.StreamLoader(
            ss.ShardDataset(
                args.shards,
                batch_size=args.batch_size,
                shuffle=shuffle,
                parts="graph",
                tail="drop" if shuffle else "exact",
            ),
            num_workers=args.workers,
            device=device,
        )
        for shuffle in (True, False)
    ]
    train, test = loaders
    model = Model(ss.open(args.shards)[0]["graph"].x.shape[1]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for epoch in range(args.epochs):
        for batch in train:
            loss = nn.functional.cross_entropy(model(batch)[batch.train], batch.y[batch.train])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = accuracy(model, test)
        print(f"epoch {epoch}: test accuracy {score:.1%} (chance: {1 / CLASSES:.1%})")


if __name__ == "__main__":
    main()
