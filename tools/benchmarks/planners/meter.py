"""What a planner's process took: standard library only, since peers' environments have no more.

The peak is the kernel's VmHWM, which is this process's own: `ru_maxrss` is not less than what the
process that started it had resident.
"""

import json
import time
from pathlib import Path

MB = 1e6


def _status(name: str) -> float:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) * 1024 / MB


def resident() -> float:
    """MB in memory now."""
    return _status("VmRSS:")


class Meter:
    """Seconds and peak MB from here on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far, the imports', is forgotten
        self._before, self._begin = resident(), time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def peak(self) -> float:
        return _status("VmHWM:") - self._before


def answer(**figures: float) -> None:
    """Tell the benchmark."""
    print(json.dumps(figures))
