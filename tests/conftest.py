"""What every test may rely on, and what none may leave behind."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from tests import s3

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


@pytest.fixture
def memory_url() -> Iterator[str]:
    """A place in memory that is empty, and again afterwards."""
    yield f"memory://{uuid.uuid4().hex}/own"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """One S3 server for all tests, begun where the first wants it."""
    if not all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask_cors")):
        pytest.skip("needs s3fs, moto[s3], flask and flask-cors (extra dev)")
    with s3.running_server() as port:
        yield port


@pytest.fixture
def s3_url(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place that is empty, on a server that this process and those it starts find."""
    for name, value in s3.settings_of(s3_port).items():
        monkeypatch.setenv(name, value)
    s3.reset(s3_port)
    return "s3://bucket/own"
