"""How a process that encodes is started, and what it does first."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext

import torch


def context_of(start_method: str | None, imports: Sequence[str]) -> BaseContext:
    """How processes are started: what they import is imported once where they are forked.

    Torch and PyG take some 250 MB in each process that imports them by itself.
    """
    context = multiprocessing.get_context(start_method)
    method = context.get_start_method()
    if method == "forkserver":
        context.set_forkserver_preload(["streamshard.pack.job", *imports])
    elif method == "fork":
        for name in imports:
            importlib.import_module(name)
    return context


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
