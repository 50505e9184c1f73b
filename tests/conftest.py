"""What every test may rely on, and what none may leave behind."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from tests import s3

torch.set_num_threads(1)

# They run in environments of their own (tools/peers), and import what only those have.
collect_ignore_glob = ["*/readers/of_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long forms of the laws too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="the long form; --slow runs it"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_configure(config: pytest.Config) -> None:
    # What it forks has torch then, and need not import it each time.
    multiprocessing.set_forkserver_preload(["torch"])
    _keep_forks_off_the_pipe(config)


def _keep_forks_off_the_pipe(config: pytest.Config) -> None:
    """Where pytest-xdist runs several test processes, it knows by a pipe when one has ended.

    A forked child that hangs would hold it open, and the run would wait for it for ever after
    the timeout of a test has ended its parent.
    """
    for plugin in config.pluginmanager.get_plugins():
        if type(plugin).__name__ == "WorkerInteractor":
            pipe, nowhere = plugin.channel.gateway._io, os.open(os.devnull, os.O_RDWR)
            for file in (pipe.infile, pipe.outfile):
                let_go = partial(os.dup2, nowhere, file.fileno(), inheritable=False)
                os.register_at_fork(after_in_child=let_go)


@pytest.fixture(autouse=True, scope="session")
def nobody_waits_for_the_disk() -> Iterator[None]:
    """What a killed process wrote is the kernel's; only a power cut would tell, and none is tested.

    Most of the time of a small pack is fsync on a disk that is busy.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # fails alike for what is no open file
        yield


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
    end = time.monotonic() + 5
    while (left := _shared_memory() - before) and time.monotonic() < end:
        time.sleep(0.01)  # of a process of another test that runs beside this one, and has ended
    assert not left, f"left in /dev/shm: {left}"


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
