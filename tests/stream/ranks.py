"""Ranks of torchrun that run `in_step_job`: by its command, or by its launcher in forks."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.stream import in_step_job

JOB = Path(in_step_job.__file__)
LIMIT_SECONDS = 110
Results = list[dict[str, Any]]  # by rank


def torchrun(folder: Path, processes: int, settings: list[dict[str, Any]]) -> Results:
    """Run the job on so many processes, as a user does; what each rank wrote."""
    told = write(folder, settings)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(JOB), str(folder), str(told)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return read(folder, processes)


def forked(folder: Path, processes: int, settings: list[dict[str, Any]]) -> Results:
    """The same by what torchrun calls, with ranks that are forked: nobody imports torch and PyG."""
    told = write(folder, settings)
    agent = multiprocessing.get_context("fork").Process(
        target=launch, args=(processes, str(folder), str(told))
    )
    agent.start()
    agent.join(LIMIT_SECONDS)
    agent.terminate()  # where it still lives; it ends its ranks
    agent.join(5)
    assert agent.exitcode == 0, f"the ranks' agent ended with {agent.exitcode}; see standard error"
    return read(folder, processes)


def launch(processes: int, folder: str, told: str) -> None:
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, in_step_job.main)(folder, told)


def write(folder: Path, settings: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder / "settings.json"


def read(folder: Path, processes: int) -> Results:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
