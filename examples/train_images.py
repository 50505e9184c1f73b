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


def main() -> None:
    args = parse()
    device, rank = set_up()
    torch.manual_seed(args.seed)
    train = make_loader(args.train, args, device, train=True)
    test = make_loader(args.test, args, device, train=False)
    model = make_model(len(train.dataset.classes)).to(device)
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
        begin, samples = time.perf_counter(), 0
        for images, labels in train:
            loss = nn.functional.cross_entropy(parallel(as_input(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            samples, steps = samples + len(labels), steps + 1
            if steps == args.stop_after:
                save()
                if rank == 0:
                    print(f"stopped in epoch {epoch}, {train.steps_left} of {len(train)} left")
                return
        seconds = time.perf_counter() - begin
        score = accuracy(model, test)
        if rank == 0:
            rate = samples * (dist.get_world_size() if dist.is_initialized() else 1) / seconds
            print(
                f"epoch {epoch}: loss {loss.item():.3f}, test accuracy {score:.1%}, "
                f"{rate:,.0f} images/s"
            )
        save()


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
