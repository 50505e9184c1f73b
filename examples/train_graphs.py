"""Train a small GNN on packed graphs to predict a number; one process or many.

    python examples/train_graphs.py data/train data/test
    torchrun --nproc-per-node 2 examples/train_graphs.py data/train data/test
    python examples/train_graphs.py data/train data/test --resume        goes on where it stopped

The graphs have node features `x` and one number `y` each.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch_geometric.nn import GINConv, global_add_pool

import streamshard as ss


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64, help="per rank")
    parser.add_argument("--workers", type=int, default=2, help="per rank")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="checkpoint.pt")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop-after", type=int, help="stop after so many steps, with a checkpoint")
    return parser.parse_args()


def set_up() -> tuple[torch.device, int]:
    """This process's device and rank; joins the process group under torchrun."""
    cuda = torch.cuda.is_available()
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu")
    return device, dist.get_rank() if dist.is_initialized() else 0


def make_loader(url: str, args: argparse.Namespace, device: torch.device, train: bool):
    """PyG batches: shuffled, or all of them in order."""
    dataset = ss.ShardDataset(
        url,
        batch_size=args.batch_size,
        shuffle=train,
        seed=args.seed,
        parts="graph",
        tail="drop" if train else "exact",
    )
    return ss.StreamLoader(dataset, num_workers=args.workers, device=device)


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
        x = batch.x
        for layer in self.rounds:
            x = layer(x, batch.edge_index)
        return self.head(global_add_pool(x, batch.batch, batch.num_graphs)).squeeze(1)


@torch.no_grad()
def evaluate(model: nn.Module, loader, mean: float) -> tuple[float, float]:
    """Mean absolute error over all ranks, of the model and of always saying the mean."""
    model.eval()
    sums = torch.zeros(3)
    for batch in loader:
        errors = (model(batch) - batch.y).abs().sum()
        baseline = (mean - batch.y).abs().sum()
        sums += torch.tensor([float(errors), float(baseline), batch.num_graphs])
    model.train()
    if dist.is_initialized():
        dist.all_reduce(sums)
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


def main() -> None:
    args = parse()
    device, rank = set_up()
    torch.manual_seed(args.seed)
    train = make_loader(args.train, args, device, train=True)
    test = make_loader(args.test, args, device, train=False)
    samples = ss.open(args.train)
    mean = sum(float(samples[number]["graph"].y) for number in range(len(samples))) / len(samples)
    model = Model(samples[0]["graph"].x.shape[1]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    if args.resume:
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        train.load_state_dict(state["loader"])
        if rank == 0:
            print(f"resumed in epoch {train.epoch}, {train.steps_left} of {len(train)} steps left")
    parallel = nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model

    def save() -> None:
        if rank == 0:  # the loader's state is the same on all ranks
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "loader": train.state_dict()}, args.checkpoint)

    steps = 0
    for epoch in range(train.epoch, args.epochs):
        begin, graphs = time.perf_counter(), 0
        for batch in train:
            loss = nn.functional.smooth_l1_loss(parallel(batch), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            graphs, steps = graphs + batch.num_graphs, steps + 1
            if steps == args.stop_after:
                save()
                if rank == 0:
                    print(f"stopped in epoch {epoch}, {train.steps_left} of {len(train)} left")
                return
        seconds = time.perf_counter() - begin
        error, baseline = evaluate(model, test, mean)
        if rank == 0:
            rate = graphs * (dist.get_world_size() if dist.is_initialized() else 1) / seconds
            print(
                f"epoch {epoch}: loss {loss.item():.3f}, test error {error:.2f} "
                f"(saying the mean: {baseline:.2f}), {rate:,.0f} graphs/s"
            )
        save()


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
