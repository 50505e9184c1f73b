"""Train a small GNN on packed graphs to predict a number; one process or many.

    python examples/train_graphs.py data/train data/test
    torchrun --nproc-per-node 2 examples/train_graphs.py data/train data/test
    python examples/train_graphs.py data/train data/test --resume        goes on where it stopped
    python examples/train_graphs.py data/molecules --smiles examples/molecules.csv --target logp

The graphs have node features `x` and one number `y` each. Without TEST, a fifth of TRAIN is held
out. With --smiles, the molecules of a CSV file are packed into TRAIN first. examples/molecules.csv
has 600 of ZINC (Irwin and Shoichet; a free database of compounds that can be bought), and of each
what RDKit takes its octanol-water partition coefficient for (Wildman and Crippen 1999).
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch_geometric.nn import GINConv, global_add_pool
from torch_geometric.utils.smiles import x_map

import streamshard as ss


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("test", nargs="?")
    parser.add_argument("--smiles", metavar="FILE.csv", help="pack this file into TRAIN first")
    parser.add_argument("--column", default="smiles", help="of FILE.csv: the molecules")
    parser.add_argument("--target", default="logp", help="of FILE.csv: what to predict")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64, help="per rank")
    parser.add_argument("--workers", type=int, default=2, help="per rank")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="checkpoint.pt")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--stop-after", type=int, help="stop after so many steps, with a checkpoint"
    )
    return parser.parse_args()


def set_up() -> tuple[torch.device, int, int]:
    """This process's device, rank and world size; joins the process group under torchrun."""
    cuda = torch.cuda.is_available()
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu")
    if dist.is_initialized():
        return device, dist.get_rank(), dist.get_world_size()
    return device, 0, 1


def pack_molecules(args: argparse.Namespace, rank: int) -> None:
    """Pack the file on one rank, the others waiting; a finished pack is kept."""
    if rank == 0 and not os.path.exists(args.train):
        ss.pack_graphs(args.smiles, args.train, smiles=args.column, targets=[args.target])
    if dist.is_initialized():
        dist.barrier()


def make_loader(args: argparse.Namespace, device: torch.device, train: bool):
    """PyG batches: shuffled, or all of them in order."""
    dataset = ss.ShardDataset(
        args.train if train or not args.test else args.test,
        batch_size=args.batch_size,
        shuffle=train,
        seed=args.seed,
        parts="graph",
        tail="drop" if train else "exact",
    )
    if not args.test:
        dataset = dataset.split(train=0.8, test=0.2)["train" if train else "test"]
    return ss.StreamLoader(dataset, num_workers=args.workers, device=device)


def node_features(x: torch.Tensor) -> torch.Tensor:
    """Numbers as they are; of molecules (integers), each kind of each feature is one of its own."""
    if x.is_floating_point():
        return x
    kinds = [len(kinds) for kinds in x_map.values()]  # PyG's numbering of atoms' features
    columns = [nn.functional.one_hot(x[:, i], count) for i, count in enumerate(kinds)]
    return torch.cat(columns, 1).float()


class Model(nn.Module):
    """Three rounds of message passing (GIN, Xu et al. 2019), a sum over nodes, two layers."""

    def __init__(self, features: int, width: int = 64) -> None:
        super().__init__()
        self.rounds = nn.ModuleList(
            GINConv(self.layers(size, width)) for size in (features, width, width)
        )
        self.head = nn.Sequential(self.layers(width, width), nn.Linear(width, 1))

    @staticmethod
    def layers(size: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, batch) -> torch.Tensor:
        x = node_features(batch.x)
        for layer in self.rounds:
            x = layer(x, batch.edge_index)
        return self.head(global_add_pool(x, batch.batch, batch.num_graphs)).squeeze(1)


@torch.no_grad()
def evaluate(model: nn.Module, loader, mean: float) -> tuple[float, float]:
    """Mean absolute error over all ranks, of the model and of always saying the mean."""
    model.eval()
    sums = torch.zeros(3)
    for batch in loader:
        errors = (model(batch) - batch.y.view(-1)).abs().sum()
        baseline = (mean - batch.y).abs().sum()
        sums += torch.tensor([float(errors), float(baseline), batch.num_graphs])
    model.train()
    if dist.is_initialized():
        dist.all_reduce(sums)
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


def train_epoch(model, optimizer, loader, stop_after: int | None, done: int) -> tuple[int, float]:
    """The rest of an epoch, or what is left to a stop; the steps taken and the last loss."""
    steps, loss = 0, torch.zeros(())
    for batch in loader:
        loss = nn.functional.smooth_l1_loss(model(batch), batch.y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if done + steps == stop_after:
            break
    return steps, loss.item()


def main() -> None:
    args = parse()
    device, rank, size = set_up()
    say = print if rank == 0 else lambda *_: None
    torch.manual_seed(args.seed)
    if args.smiles:
        pack_molecules(args, rank)
    train = make_loader(args, device, train=True)
    test = make_loader(args, device, train=False)
    samples = ss.open(args.train)
    mean = sum(float(sample["graph"].y) for sample in samples) / len(samples)
    model = Model(node_features(samples[0]["graph"].x).shape[1]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    things = {"model": model, "optimizer": optimizer, "loader": train}
    if args.resume:
        state = torch.load(args.checkpoint, weights_only=True)
        for name, thing in things.items():
            thing.load_state_dict(state[name])
        say(f"resumed in epoch {train.epoch}, {train.steps_left} of {len(train)} steps left")
    parallel = nn.parallel.DistributedDataParallel(model) if size > 1 else model

    done = 0
    for epoch in range(train.epoch, args.epochs):
        begin = time.perf_counter()
        steps, loss = train_epoch(parallel, optimizer, train, args.stop_after, done)
        done += steps
        rate = steps * args.batch_size * size / (time.perf_counter() - begin)
        if rank == 0:  # the loader's state is the same on all ranks
            torch.save(
                {name: thing.state_dict() for name, thing in things.items()}, args.checkpoint
            )
        if done == args.stop_after:
            say(f"stopped in epoch {epoch}, {train.steps_left} of {len(train)} steps left")
            break
        error, baseline = evaluate(model, test, mean)
        say(
            f"epoch {epoch}: loss {loss:.3f}, test error {error:.2f} "
            f"(saying the mean: {baseline:.2f}), {rate:,.0f} graphs/s"
        )


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
