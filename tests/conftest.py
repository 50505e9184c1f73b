"""What every test may rely on, and what none may leave behind."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import sys
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long forms of the laws too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="the long form; --slow runs it"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a process or named shared memory."""
    before = _shared_memory()
    yield
    if multiprocessing.active_children():
        gc.collect()  # iterators that a failed loop left in a traceback
    for child in multiprocessing.active_children():
        child.join(5.0)
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    assert not children, f"processes left: {children}"
    assert _shared_memory() <= before, f"left in /dev/shm: {_shared_memory() - before}"


def _shared_memory() -> set[str]:
    """Names that torch gave, but for those of processes that live and are not ours."""
    folder = Path("/dev/shm")
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    return {name for name in names if name.startswith("torch_") and not _is_strangers(name)}


def _is_strangers(name: str) -> bool:
    pid = name.split("_")[1]
    return pid != str(os.getpid()) and Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="session")
def torchvision() -> Iterator[Any]:
    """torchvision's transforms in this process; where it is not installed, those of tools/peers.

    It has no build for a torch without CUDA. Its transforms need none; to be imported it wants two
    operators to be known, which it would bring.
    """
    operators: Any = None
    if importlib.util.find_spec("torchvision") is None:
        peers = Path(os.environ.get("STREAMSHARD_PEERS", Path(__file__).parents[1] / ".peers"))
        found = [*(peers / "torchvision").glob("lib/python3*/site-packages")]
        if not found:
            pytest.skip("tools/peers torchvision installs it")
        sys.path.append(str(found[0]))
        library: Any = torch.library.Library
        operators = library("torchvision", "DEF")
        operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings(action="ignore"):
        yield importlib.import_module("torchvision")
    del operators  # they are known as long as this is


@pytest.fixture
def memory_url() -> Iterator[str]:
    """A place in memory that is empty, and again afterwards."""
    yield f"memory://{uuid.uuid4().hex}/own"
    fsspec.filesystem("memory").store.clear()
