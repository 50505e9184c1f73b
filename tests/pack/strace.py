"""A pack whose system calls fail, or that is killed at one, by the kernel itself."""

from __future__ import annotations

import contextlib
import os
import posix
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streamshard.cli.main import main
from tests.pack.crashes import end_of_child

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (apt-get install strace)"
)


class Ended(NamedTuple):
    """How a command ended: exit status or minus the signal, and what it said."""

    status: int
    out: str
    err: str


def command_under_strace(scratch: Path, call: str, fault: str, *arguments: Any) -> Ended:
    """A command in a forked process, some of whose system calls are tampered with.

    Args:
        scratch: A folder for what it says.
        call: The system call.
        fault: What happens at which of them, as `strace -e inject` has it after the name.
        *arguments: Of `streamshard`.
    """
    begin, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(begun)
        _run(begin, scratch, [*map(str, arguments)])
    os.close(begin)
    with _attached(pid, f"inject={call}:{fault}"):
        os.close(begun)  # which it waits for
        status = end_of_child(pid)
    return Ended(status, (scratch / "out").read_text(), (scratch / "err").read_text())


def _run(begin: int, scratch: Path, arguments: list[str]) -> None:
    """What the forked process does; it does not return."""
    status = 70
    try:
        os.setsid()
        os.fsync = posix.fsync  # which the tests do without, but for these
        os.read(begin, 1)
        # Line by line, as to a terminal; else all is written when the process ends.
        with (scratch / "out").open("w", buffering=1) as out, (scratch / "err").open("w") as err:
            sys.stdout, sys.stderr, sys.argv = out, err, ["streamshard", *arguments]
            try:
                main()
            except SystemExit as ended:
                status = int(ended.code or 0)
    finally:
        os._exit(status)


@contextlib.contextmanager
def _attached(pid: int, inject: str) -> Iterator[None]:
    call = inject.partition("=")[2].partition(":")[0]
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    strace = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    try:
        said = strace.stderr.readline()
        assert "attached" in said, said
        yield
    finally:
        strace.communicate(timeout=60)
