"""Packs whose system calls fail in the kernel, or that are killed there: at any of them."""

from __future__ import annotations

import errno
import os
import posix
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import streamshard as ss
from tests.pack.crashes import assert_nothing_half
from tests.pack.sources import class_folders, files_of, ring
from tests.pack.strace import Ended, command_under_strace, needs_strace

pytestmark = needs_strace

# A disk that is full stays so, but what a pack says goes through `write` too.
FAULTS = {
    "kill": "signal=SIGKILL:when={at}",
    "ENOSPC": "error=ENOSPC:when={at}",
    "EIO": "error=EIO:when={at}",
    "ENOSPC from there on": "error=ENOSPC:when={at}+",
}
ALL = range(1, 1_000)


class Source:
    """What is packed, and the files of a pack that nothing interrupted."""

    def __init__(self, root: Path, kind: str) -> None:
        if kind == "graphs":
            (root / "graphs").mkdir()
            for number in range(12):
                torch.save(
                    ring(20 + number, y=torch.tensor([number])), root / f"graphs/{number}.pt"
                )
            self.arguments: list[Any] = ["graphs", root / "graphs", "--shard-size", "8KB"]
            ss.pack_graphs(root / "graphs", root / "whole", shard_size=8_000, workers=0)
        else:
            photos = class_folders(root / "photos", each=4)
            self.arguments = ["images", photos, "--shard-size", "6KB", "--format", "npy"]
            ss.pack_images(photos, root / "whole", shard_size=6_000, format="npy", workers=0)
        self.whole = files_of(root / "whole")
        assert sum(name.endswith(".tar") for name in self.whole) > 2

    def pack(self, scratch: Path, call: str, fault: str, workers: int) -> Ended:
        more = ("--workers", workers)
        arguments = ("pack", *self.arguments[:2], scratch / "own", *self.arguments[2:], *more)
        return command_under_strace(scratch, call, fault, *arguments)

    def go_on(self, folder: Path) -> None:
        pack: Any = ss.pack_graphs if self.arguments[0] == "graphs" else ss.pack_images
        more = {} if self.arguments[0] == "graphs" else {"format": "npy"}
        size = {"graphs": 8_000, "images": 6_000}[self.arguments[0]]
        pack(self.arguments[1], folder, shard_size=size, workers=0, resume=True, **more)


@pytest.fixture(autouse=True)
def real_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the tests do not wait for the disk; here the call is what fails."""
    monkeypatch.setattr(os, "fsync", posix.fsync)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    return {kind: Source(tmp_path_factory.mktemp(kind), kind) for kind in ("images", "graphs")}


def faults_at(
    source: Source, scratch: Path, call: str, fault: str, numbers: Iterable[int], workers: int = 0
) -> int:
    """Let a pack have a fault at each of some calls, until it has no more; how many had one."""
    for done, at in enumerate(numbers):
        folder = scratch / "own"
        ended = source.pack(scratch, call, FAULTS[fault].format(at=at), workers)
        assert_nothing_half(folder, source.whole)
        if ended.status == 0:
            assert files_of(folder) == source.whole
            return done
        check_end(ended, fault, folder)
        source.go_on(folder)
        assert files_of(folder) == source.whole, (call, fault, at)
        shutil.rmtree(folder)
    return done + 1


def check_end(ended: Ended, fault: str, folder: Path) -> None:
    """How the command ends: killed, or with one line of error."""
    if ended.status == -signal.SIGKILL:
        assert fault == "kill"
        return
    assert ended.status == 1, ended
    assert len(ended.err.splitlines()) == 1, ended.err
    if fault == "kill":  # of a worker
        how = ("was killed by SIGKILL", "could not be started")
        assert any(f"a worker of the pack {each}" in ended.err for each in how)
        return
    assert os.strerror(errno.EIO if fault == "EIO" else errno.ENOSPC) in ended.err
    if ".streamshard/manifest.json" in files_of(folder):
        # Seen, but its name may not be on the disk yet; or else it was what is printed.
        manifest = f"{folder}/.streamshard/manifest.json: "
        assert manifest in ended.err or "standard output: " in ended.err
        return
    assert f"{folder}/" in ended.err
    if f"{folder}/.streamshard/pack.lock: " not in ended.err:  # before anything
        assert "finished: --resume (resume=True) goes on" in ended.err
    if "from" not in fault:  # else it can't even tidy up
        assert not any(name.endswith((".tmp", "pack.lock")) for name in files_of(folder))


@pytest.mark.parametrize(
    ("call", "fault", "at"),
    [
        ("write", "ENOSPC", 9),
        ("write", "kill", 12),
        ("fsync", "EIO", 8),
        ("fsync", "ENOSPC from there on", 17),
        ("rename", "ENOSPC", 7),
        ("rename", "kill", 4),
    ],
)
def test_a_fault_in_the_kernel_leaves_nothing_half_and_the_pack_goes_on(
    sources: dict[str, Source], tmp_path: Path, call: str, fault: str, at: int
) -> None:
    assert faults_at(sources["images"], tmp_path, call, fault, [at]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "call"),
    [
        *[("kill", call) for call in ("write", "fsync", "rename", "unlink", "mkdir", "pwrite64")],
        *[("ENOSPC", call) for call in ("write", "fsync", "rename", "mkdir")],
        *[("EIO", call) for call in ("write", "fsync", "rename")],
        *[("ENOSPC from there on", call) for call in ("fsync", "rename")],
    ],
)
@pytest.mark.parametrize("kind", ["images", "graphs"])
def test_a_fault_of_the_kernel_at_every_call(
    sources: dict[str, Source], tmp_path: Path, kind: str, call: str, fault: str
) -> None:
    assert faults_at(sources[kind], tmp_path, call, fault, ALL) >= (
        10 if call in ("write", "fsync", "rename") else 1
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "call"),
    [
        *[("kill", call) for call in ("write", "read", "fsync", "rename")],
        *[("ENOSPC", call) for call in ("fsync", "rename")],
    ],
)
@pytest.mark.parametrize("block", range(8))
def test_a_fault_of_the_kernel_at_every_call_of_a_pack_with_workers(
    sources: dict[str, Source], tmp_path: Path, call: str, fault: str, block: int
) -> None:
    # The first read is that of the test, which holds the command back until strace is there.
    numbers = ALL[1 + 7 * block :: 56] if call == "read" else ALL[block::8]
    assert faults_at(sources["images"], tmp_path, call, fault, numbers, workers=2) >= 1
