"""Packs that end in the middle, and what must never be seen of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import streamshard as ss
from streamshard.errors import StreamshardError
from tests.pack.sources import files_of

KILLED = 9
_PASSING = (".tmp", ".journal.json", "/journal.json", "/journal.safetensors", "/pack.lock")


def assert_nothing_half(folder: Path, whole: dict[str, bytes]) -> None:
    """What has its own name is what an uninterrupted pack wrote there."""
    found = files_of(folder)
    visible = {name: data for name, data in found.items() if name in whole}
    for name, data in visible.items():
        assert data == whole[name], name
    if ".streamshard/manifest.json" in found:
        assert visible.keys() == whole.keys()
        assert list(ss.open(str(folder)).find_damage()) == []
    for name in found.keys() - whole.keys():
        assert name.endswith(_PASSING), name


def begin_child(function: Callable[[], object]) -> int:
    """Run something in a forked process with a session of its own; its number."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            function()
            os._exit(0)
        except StreamshardError:
            os._exit(1)
        finally:
            os._exit(2)
    return pid


def end_of_child(pid: int) -> int:
    """The exit status of a forked process, or minus the signal, when all of its own ended too."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    wait_for_session(pid)
    return status


def in_child(function: Callable[[], object]) -> int:
    """Run something in a forked process to its end; its exit status, or minus the signal."""
    return end_of_child(begin_child(function))


def wait_for_session(session: int) -> None:
    """A killed pack's workers end by themselves."""
    end = time.monotonic() + 60
    while alive := [stat for stat in _stats() if int(stat[3]) == session and stat[0] != "Z"]:
        assert time.monotonic() < end, f"left: {alive}"
        time.sleep(0.005)


def _stats() -> Iterator[list[str]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            yield path.read_text().rpartition(")")[2].split()
