"""The examples and the README's code run, on small data, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamshard.cli.main import main

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def streamshard(*words: object, cwd: Path) -> None:
    """A command, in this process: its start takes longer than what it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["streamshard", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits and the atlas, packed by the command line."""
    folder = tmp_path_factory.mktemp("examples")
    run(sys.executable, ROOT / "examples/digits.py", "digits", cwd=folder)
    for split in ("train", "test"):
        streamshard("pack", "images", f"digits/{split}", f"digits-{split}", cwd=folder)
        spec = f"{ROOT}/examples/atlas.py:{split}"
        streamshard("pack", "graphs", spec, f"atlas-{split}", "--allow-empty", cwd=folder)
    return folder


def last(output: str, pattern: str) -> float:
    return float(re.findall(pattern, output)[-1])


def test_digits_are_learned_and_a_stopped_run_goes_on(folder: Path) -> None:
    command = [sys.executable, ROOT / "examples/train_images.py", "digits-train", "digits-test"]
    command += ["--checkpoint", "digits.pt", "--epochs", 4]
    output = run(*command, "--stop-after", 60, cwd=folder)
    assert "stopped in epoch 1, 28 of 44 steps left" in output
    output = run(*command, "--resume", "--workers", 1, cwd=folder)
    assert "resumed in epoch 1, 28 of 44 steps left" in output
    assert last(output, r"test accuracy ([\d.]+)%") >= 95


def test_triangles_are_learned_far_better_than_the_mean(folder: Path) -> None:
    command = [sys.executable, ROOT / "examples/train_graphs.py", "atlas-train", "atlas-test"]
    output = run(*command, "--checkpoint", "atlas.pt", "--epochs", 8, "--workers", 1, cwd=folder)
    error, mean = last(output, r"test error ([\d.]+)"), last(output, r"the mean: ([\d.]+)")
    assert error < mean / 2


def test_molecules_are_packed_from_smiles_and_learned(folder: Path) -> None:
    command = [sys.executable, ROOT / "examples/train_graphs.py", "molecules-zinc"]
    command += ["--smiles", ROOT / "examples/molecules.csv", "--checkpoint", "molecules.pt"]
    output = run(*command, "--epochs", 20, "--batch-size", 32, "--workers", 0, cwd=folder)
    error, mean = last(output, r"test error ([\d.]+)"), last(output, r"the mean: ([\d.]+)")
    assert error < mean * 0.6
    output = run(*command, "--epochs", 21, "--resume", "--workers", 0, cwd=folder)
    assert "resumed in epoch 20" in output


def test_one_large_graph_is_learned_from_its_parts(folder: Path) -> None:
    output = run(sys.executable, ROOT / "examples/train_clusters.py", "clusters", cwd=folder)
    assert output.startswith("200 parts with ")
    assert last(output, r"test accuracy ([\d.]+)%") >= 85, "a node's own features give 31"


def test_examples_run_under_torchrun_and_resume(folder: Path) -> None:
    images = [*TORCHRUN, ROOT / "examples/train_images.py", "digits-train", "digits-test"]
    images += ["--checkpoint", "two.pt", "--epochs", 2, "--workers", 1]
    assert "stopped in epoch 0" in run(*images, "--stop-after", 10, cwd=folder)
    output = run(*images, "--resume", "--crop", 8, cwd=folder)
    assert "resumed in epoch 0, 12 of 22 steps left" in output
    assert output.count("epoch 1:") == 1, "only one rank speaks"
    graphs = [*TORCHRUN, ROOT / "examples/train_graphs.py", "atlas-train", "atlas-test"]
    output = run(*graphs, "--checkpoint", "g.pt", "--epochs", 1, "--workers", 1, cwd=folder)
    assert "epoch 0:" in output


def readme_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs_as_it_stands(folder: Path, tmp_path: Path) -> None:
    """All blocks, one after another, in a folder where `photos/` is what it says it is."""
    os.symlink(folder / "digits" / "train", tmp_path / "photos")
    os.symlink(folder / "atlas-train", tmp_path / "molecules")
    assert readme_blocks()
    run(sys.executable, "-c", "\n".join(readme_blocks()), cwd=tmp_path)
