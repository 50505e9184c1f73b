"""The `streamshard` command, as a process of its own and in this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import streamshard

COMMAND = [sys.executable, "-m", "streamshard.cli.main"]

# Where the package was imported from, so that the process finds it from any folder.
_ROOT = str(Path(streamshard.__file__).parents[1])


class Done(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


class Here(Protocol):
    """Runs a command in this process, which spares a start; what the fixture `here` gives."""

    def __call__(self, *arguments: Any, cwd: Path) -> Done:
        """Run it to its end; an exception that it does not turn into a line comes through."""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "80", **more}


def without_progress(err: str) -> str:
    """What else is on standard error than the lines that a slow machine gets every five seconds."""
    return re.sub(r"^[a-z]+[^:\n]*: \d+( of \d+)? samples, .*/s\n", "", err, flags=re.MULTILINE)


def streamshard_command(*arguments: Any, cwd: Path | None = None, **env: str) -> Done:
    """Run a command to its end; what it left, without its progress."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        cwd=cwd,
        env=environment(**env),
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, without_progress(done.stderr))
