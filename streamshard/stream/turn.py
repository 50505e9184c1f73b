"""A lock that outlives neither a fork nor a pickle."""

from __future__ import annotations

import os
import threading


class Turn:
    """One thread at a time; a process forked while it was held finds it free.

    The thread that held it is not in the forked process, and would never give it back there.
    """

    def __init__(self) -> None:
        self._lock, self._pid = threading.Lock(), os.getpid()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
