"""LitData in a process and an environment of its own, run epoch by epoch."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch_geometric.data import Data

LOADER = Path(__file__).parent / "loaders" / "of_litdata.py"


class LitdataPeer:
    """Its loader over the same molecules, where `tools/peers litdata` was run.

    Attributes:
        is_there: Whether it can be measured.
    """

    def __init__(self, folder: Path, molecules: list[Data], batch_size: int, workers: int) -> None:
        root = Path(__file__).parents[2]
        home = Path(os.environ.get("STREAMSHARD_PEERS", root / ".peers")) / "litdata"
        self.is_there = (home / "bin" / "python").exists()
        if not self.is_there:
            print("LitData is not measured; tools/peers litdata installs it", file=sys.stderr)
            return
        path = folder.with_suffix(".pt")
        torch.save(molecules, path)
        # It is lent the torch and PyG that it is measured beside.
        lent = Path(torch.__file__).parents[1]
        self._process = subprocess.Popen(
            [home / "bin" / "python", LOADER, path, folder, str(batch_size), str(workers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": str(lent)},
        )  # fmt: skip

    def epoch(self) -> int:
        """One epoch; the number of graphs."""
        self._say("epoch")
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process and its workers."""
        if self.is_there:
            # Not by closing its input, of which workers that were forked here have the other end.
            self._say("end")
            self._process.wait()

    def _say(self, word: str) -> None:
        assert self._process.stdin
        print(word, file=self._process.stdin, flush=True)
