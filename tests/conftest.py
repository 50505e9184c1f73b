"""What every test may rely on, and what none may leave behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

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
    """No test leaves a process, one of our threads or named shared memory."""
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
    if any(map(_is_ours, threading.enumerate())):
        gc.collect()
    threads = [thread.name for thread in threading.enumerate() if _is_ours(thread)]
    assert not threads, f"threads left: {threads}"
    assert _shared_memory() <= before, f"left in /dev/shm: {_shared_memory() - before}"


def _shared_memory() -> set[str]:
    """Names that torch gave, but for those of processes that live and are not ours."""
    folder = Path("/dev/shm")
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    return {name for name in names if name.startswith("torch_") and not _is_strangers(name)}


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith("streamshard")


def _is_strangers(name: str) -> bool:
    pid = name.split("_")[1]
    return pid != str(os.getpid()) and Path(f"/proc/{pid}").exists()


@pytest.fixture
def memory_url() -> Iterator[str]:
    """A place in memory that is empty, and again afterwards."""
    yield f"memory://{uuid.uuid4().hex}/own"
    fsspec.filesystem("memory").store.clear()
