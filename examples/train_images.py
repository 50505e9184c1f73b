"""Train a small CNN on packed images; the same script for one process and for many.

python examples/train_images.py data/train data/test
torchrun --nproc-per-node 2 examples/train_images.py data/train data/test
python examples/train_images.py data/train data/test --resume        goes on where it stopped
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn

import streamshard as ss


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--crop", type=int, help="random crops of this size; else whole images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="per rank")
    parser.add_argument("--workers", type=int, default=2, help="per rank")
    parser.add_argument("--lr", type=float, default=2e-3)
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


def make_loader(url: str, args: argparse.Namespace, device: torch.device, train: bool):
    """Batches of images and labels: shuffled and cropped at random, or all of them in order."""
    image = next(part for part in ss.open(url).manifest.parts if part != "cls")
    decode = {}
    if args.crop:
        crop = ss.RandomResizedCrop(args.crop) if train else ss.CenterCrop(args.crop)
        decode = {image: crop}
    dataset = ss.ShardDataset(
        url,
        batch_size=args.batch_size,
        shuffle=train,
        seed=args.seed,
        parts=(image, "cls"),
        decode=decode,
        tail="drop" if train else "exact",
    )
    return ss.StreamLoader(dataset, num_workers=args.workers, device=device)


def make_model(classes: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(3, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 4, classes),
    )  # fmt: skip


def as_input(images: torch.Tensor) -> torch.Tensor:
    """Bytes to numbers around 0, on the device."""
    return images.float().div_(127.5).sub_(1.0)


@torch.no_grad()
def accuracy(model: nn.Module, loader) -> float:
    """Over all ranks; with tail="exact" every image counts once."""
    model.eval()
    counts = torch.zeros(2)
    for images, labels in loader:
        hits = (model(as_input(images)).argmax(1) == labels).sum()
        counts += torch.tensor([float(hits), len(labels)])
    model.train()
    if dist.is_initialized():
        dist.all_reduce(counts)
    return float(counts[0] / counts[1])


def train_epoch(model, optimizer, loader, stop_after: int | None, done: int) -> tuple[int, float]:
    """The rest of an epoch, or what is left to a stop; the steps taken and the last loss."""
    steps, loss = 0, torch.zeros(())
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(as_input(images)), labels)
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
    train = make_loader(args.train, args, device, train=True)
    test = make_loader(args.test, args, device, train=False)
    model = make_model(len(train.dataset.classes)).to(device)
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
        score = accuracy(model, test)
        say(f"epoch {epoch}: loss {loss:.3f}, test accuracy {score:.1%}, {rate:,.0f} images/s")


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
