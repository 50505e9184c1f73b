"""What a process that encodes does first."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

import torch


def begin_worker() -> None:
    """Use one thread, and end when the process that packs does, however that ends.

    One, since the workers are the parallelism, and a forked process must not enter the thread pool
    that its parent has used.
    """
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
