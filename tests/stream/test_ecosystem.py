"""The real packages that people train with: their checkpoints carry the cursor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import streamshard as ss
from tests.stream.data import collect, make_tars

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tars(tmp_path_factory.mktemp("tars"), (30, 7, 64, 19))  # 12 batches of 10


def make_dataset(url: str, **options: Any) -> ss.ShardDataset:
    return ss.ShardDataset(url, **{"batch_size": 10, "shuffle": True, "seed": 2, **options})


def epochs_of(url: str, count: int) -> list[list[list[str]]]:
    loader = ss.StreamLoader(make_dataset(url))
    return [collect(loader) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("stop", [0, 1, 5, 11, 12])
def test_stateful_dataloader_goes_on_with_the_same_batches(
    tars: str, workers: int, stop: int
) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> Any:
        return StatefulDataLoader(
            make_dataset(tars), batch_size=None, num_workers=workers, collate_fn=identity
        )

    first = loader()
    iterator: Iterator[Any] = iter(first)
    before = [next(iterator)["__key__"] for _ in range(stop)]
    state = json.loads(json.dumps(first.state_dict()))
    del iterator, first
    second = loader()
    second.load_state_dict(state)
    assert before + collect(second) == epochs_of(tars, 1)[0]


def identity(batch: Any) -> Any:
    return batch


def test_stateful_dataloader_with_another_number_of_workers_is_refused(tars: str) -> None:
    """torchdata refuses it itself with workers on both sides; without, our iterator does."""
    steps = iter(make_dataset(tars))
    next(steps)
    state = steps.state_dict()
    with pytest.raises(ss.errors.CursorError, match="'workers': 3"):
        iter(make_dataset(tars)).load_state_dict({**state, "workers": 3})


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_checkpoints_carry_the_cursor(tars: str, tmp_path: Path, workers: int) -> None:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Model(lightning.LightningModule):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: list[list[str]] = []

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            self.seen.append(batch["__key__"])
            loss: torch.Tensor = self.layer(batch["cls"].float()[:, None]).mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def fit(checkpoint: str | None, **limits: Any) -> Model:
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
            callbacks=[ModelCheckpoint(tmp_path, filename="state", every_n_train_steps=15)],
            **limits,
        )  # fmt: skip
        model = Model()
        with ss.StreamLoader(make_dataset(tars), num_workers=workers) as loader:
            trainer.fit(model, loader, ckpt_path=checkpoint)
        return model

    epochs = epochs_of(tars, 3)
    assert fit(None, max_steps=17).seen == epochs[0] + epochs[1][:5]
    resumed = fit(str(tmp_path / "state.ckpt"), max_epochs=3)
    assert resumed.seen == epochs[1][3:] + epochs[2]


def test_accelerate_leaves_the_division_alone(tars: str, tmp_path: Path) -> None:
    job = Path(__file__).with_name("accelerate_job.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(job), str(tmp_path), tars],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    together = [key for step in zip(*ranks, strict=True) for keys in step for key in keys]
    dataset = make_dataset(tars, seed=0, tail="exact", lanes=1, world=ss.World(0, 1))
    assert together == [key for keys in collect(ss.StreamLoader(dataset)) for key in keys]


def test_distributed_checkpoint_saves_and_loads_the_loader(tars: str, tmp_path: Path) -> None:
    loader = ss.StreamLoader(make_dataset(tars))
    iterator = iter(loader)
    before = [next(iterator)["__key__"] for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        save({"loader": loader}, checkpoint_id=tmp_path / "state")
        again = ss.StreamLoader(make_dataset(tars))
        load({"loader": again}, checkpoint_id=tmp_path / "state")
    assert before + collect(again) == epochs_of(tars, 1)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_pipelines_divide_exactly_and_resume(tars: str, workers: int) -> None:
    import webdataset as wds

    def batches(source: Any) -> list[list[str]]:
        pipeline = wds.DataPipeline(
            source, wds.decode(), wds.to_tuple("__key__", "cls", "txt"), wds.batched(10)
        )
        loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workers)
        found = []
        for keys, labels, texts in loader:
            assert texts == keys, "decoded by webdataset"
            assert [int(key[-1]) for key in keys] == list(labels)
            found.append(list(keys))
        return found

    def source(rank: int = 0, size: int = 1) -> Any:
        return ss.webdataset_source(
            tars, batch_size=10, shuffle=True, seed=2, world=ss.World(rank, size)
        )

    epochs = epochs_of(tars, 2)
    one = source()
    assert batches(one) == epochs[0]
    state = json.loads(json.dumps(one.state_dict(5)))
    one.set_epoch(1)
    assert batches(one) == epochs[1]
    ranks = []
    for rank in range(2):
        half = source(rank, 2)
        half.load_state_dict(state)
        ranks.append(batches(half))
    assert [keys for step in zip(*ranks, strict=True) for keys in step] == epochs[0][5:11]
