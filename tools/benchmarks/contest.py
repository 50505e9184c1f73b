"""Contestants: each in processes of its own, asked for one turn after another.

A turn begins when the one before it is over and its processes are idle, so that nobody works ahead
in another's time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PIPELINES = Path(__file__).parent / "pipelines"
ROOT = Path(__file__).parents[2]
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_IDLE_SECONDS, _PATIENCE = 0.1, 10.0


@dataclass(frozen=True)
class Entry:
    """Who takes part.

    Attributes:
        name: As it is reported.
        script: In `pipelines/`, without `.py`.
        peer: The environment that it runs in, of tools/peers; None for the project's own.
        options: For the script.
    """

    name: str
    script: str
    peer: str | None = None
    options: Mapping[str, Any] | None = None

    @property
    def python(self) -> Path:
        """Its interpreter, which may not be there."""
        if self.peer is None:
            return Path(sys.executable)
        peers = Path(os.environ.get("STREAMSHARD_PEERS", ROOT / ".peers"))
        return peers / self.peer / "bin" / "python"

    @property
    def is_there(self) -> bool:
        """Whether it can be measured."""
        return self.python.exists()


class Contestant:
    """A running contestant; it has packed its data when this is made.

    Attributes:
        name: Of its entry.
        lacks: Why it can't be measured; None where it can.
    """

    def __init__(self, entry: Entry, log: Path, task: Mapping[str, Any]) -> None:
        self.name, self._log = entry.name, log
        # Peers are lent what they do not have of their own, torch above all.
        lent = Path(torch.__file__).parents[1]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [entry.python, PIPELINES / f"{entry.script}.py"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                start_new_session=True,
                env={**os.environ, "STREAMSHARD_LENT": str(lent)},
            )  # fmt: skip
        self.lacks = self.ask(**{**task, **(entry.options or {})}).get("lacks")

    def ask(self, **question: Any) -> dict[str, Any]:
        """Say something and wait for the answer.

        Raises:
            RuntimeError: It failed; with the last lines that it wrote.
        """
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(_PATIENCE)
            last = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.name} failed: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def settle(self) -> None:
        """Wait until its processes do nothing."""
        end = time.monotonic() + _PATIENCE
        before = self.processor_seconds()
        while time.monotonic() < end:
            time.sleep(_IDLE_SECONDS)
            now = self.processor_seconds()
            if now - before <= 2 * _TICK:
                return
            before = now

    def close(self) -> None:
        """End it and its workers."""
        # Not by closing its input, of which workers that were forked there have the other end.
        if self._process.poll() is None:
            with contextlib.suppress(OSError, RuntimeError, subprocess.TimeoutExpired):
                self.ask(word="end")
                self._process.wait(_PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and whom it left behind
        self._process.wait()

    def processor_seconds(self) -> float:
        """What all processes of its group have used, those that ended left out."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended
            if int(fields[2]) == self._process.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks * _TICK
