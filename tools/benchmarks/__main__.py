"""Benchmarks: this project and its peers on the same data, in turns, in one run.

tools/bench images    photographs (--jpegs FOLDER: given ones): whole pipelines of this project and
                      of every peer that tools/peers has installed; --profile: where a worker's
                      time goes
tools/bench graphs    molecules of about 23 nodes (--smiles FILE: real ones), beside PyG and others
tools/bench pack      images and molecules (--jpegs FOLDER, --smiles FILE: given ones) to shards,
                      beside webdataset's writer, GNU tar, Pillow and torch.save
tools/bench plan      10 billion samples in a million shards; smaller ones beside MosaicML's planner
tools/bench gpu       copies to a GPU, how it waits for images, decoding there (status 2: no GPU)
tools/bench details   what DESIGN.md's decisions weigh against each other

Machines are noisy, so absolute figures mean little: quote the ratios of one run.
"""

import argparse
import importlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["images", "graphs", "pack", "plan", "gpu", "details"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--smiles", metavar="FILE", type=Path, help="for graphs and pack: SMILES, one a line"
    )
    parser.add_argument(
        "--jpegs", metavar="FOLDER", type=Path, help="for images and pack: JPEGs, at any depth"
    )
    parser.add_argument("--count", type=int, default=4000, help="for images and pack: how many")
    parser.add_argument(
        "--profile", action="store_true", help="for images: where a worker's time goes, only"
    )
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="streamshard-bench-"))
    try:
        # Imported only now, so that each benchmark needs what it measures and no more.
        benchmark = importlib.import_module(args.what)
        names = {
            "graphs": ("smiles",),
            "images": ("jpegs", "count", "profile"),
            "pack": ("smiles", "jpegs", "count"),
        }
        more = {name: getattr(args, name) for name in names.get(args.what, ())}
        figures = benchmark.measure(folder, args.workers, args.rounds, **more)
    finally:
        shutil.rmtree(folder)
    if args.json:
        settings = {name: str(value) for name, value in vars(args).items()}
        result = {"settings": settings, "figures": figures, **surroundings()}
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


def surroundings() -> dict[str, object]:
    """The machine, and what is installed here and for the peers."""
    names = (
        "torch", "numpy", "pillow", "simplejpeg", "webdataset", "torch_geometric", "streamshard"
    )  # fmt: skip
    pins = (Path(__file__).parent / "peers").glob("*.txt")
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "machine": {
            "processor": model[1] if model else platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
        },
        "python": sys.version,
        "versions": {name: version(name) for name in names},
        "peers": {path.stem: re.findall(r"^\w.*==.*$", path.read_text(), re.M) for path in pins},
    }


if __name__ == "__main__":
    main()
