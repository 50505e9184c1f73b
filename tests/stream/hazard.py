"""Work that kills its process, where other processes import it quickly."""

from __future__ import annotations

import os
import signal


def hazardous(number: int) -> int:
    if number in (1, 4):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number
