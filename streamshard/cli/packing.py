"""What every `pack` command shares: its options, and what comes before and after the pack."""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import os
from collections.abc import Callable, Iterable
from inspect import Parameter
from multiprocessing import forkserver
from typing import Any

from streamshard.cli.export import Export, check_formats, export_packed
from streamshard.cli.options import (
    AsJson,
    Exclude,
    Formatted,
    Include,
    Mapped,
    MaxSide,
    OnError,
    Overwrite,
    Quality,
    Resize,
    Resume,
    Scheduler,
    Seed,
    ShardSize,
    Shuffle,
    Skip,
    Split,
    Workers,
    fractions_of,
)
from streamshard.cli.show import print_summary, progress, tell_finished

Pack = Callable[..., Any]  # gives a `Summary`; not imported here, since that takes torch


def _every_pack(
    shard_size: ShardSize = "256MB",
    workers: Workers = None,
    scheduler: Scheduler = None,
    shuffle: Shuffle = True,
    seed: Seed = 0,
    include: Include = None,
    exclude: Exclude = None,
    map: Mapped = None,
    split: Split = None,
    on_error: Skip = OnError.stop,
    resume: Resume = False,
    overwrite: Overwrite = False,
    export: Export = None,
    as_json: AsJson = False,
) -> None:
    """The options of every pack, as typer reads them."""


def _images(
    resize: Resize = None,
    max_side: MaxSide = None,
    format: Formatted = None,
    quality: Quality = 90,
) -> None:
    """The options of a pack whose source may have images."""


def pack_command(
    what: str, *, images: bool = True, shard_size: str = "256MB"
) -> Callable[[Pack], Callable[..., None]]:
    """Make a command of a function that packs.

    The command has the function's own options, then the shared ones; the function gets those of the
    pack as `**options`, ready to be handed on.

    Args:
        what: What the progress says is being done.
        images: Whether images may be encoded on the way.
        shard_size: The default.
    """

    def decorate(pack: Pack) -> Callable[..., None]:
        own = [p for p in _parameters(pack) if p.kind is not Parameter.VAR_KEYWORD]
        shared = [*(_parameters(_images) if images else ()), *_parameters(_every_pack)]
        named = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in shared]
        sized = [p.replace(default=shard_size) if p.name == "shard_size" else p for p in named]

        @functools.wraps(pack)
        def run(
            *, destination: str, export: str | None, as_json: bool, resume: bool, **given: Any
        ) -> None:
            # First of all: what follows imports torch, a second or two.
            if images and _encodes(given) and os.path.exists(given["source"]):
                _start_workers_early()
            check_formats(export)
            split = fractions_of(given.pop("split"))
            for name in given.keys() & {p.name for p in shared}:
                given[name] = _plain(name, given[name])
            tell_finished(destination, resume=resume)
            with _carried_out(given.pop("scheduler")) as execution, progress(what) as report:
                summary = pack(
                    destination=destination,
                    resume=resume,
                    split=split,
                    start_method="forkserver",  # the progress bar's thread would not survive a fork
                    progress=report,
                    **given | execution,
                )
            summary.notes.extend(export_packed(destination, export, split))
            print_summary(summary, destination, as_json=as_json)

        run.__signature__ = inspect.Signature([*own, *sized])  # type: ignore[attr-defined]
        run.__annotations__ = {}  # those of the signature count
        return run

    return decorate


def _encodes(given: dict[str, Any]) -> bool:
    """Whether images are encoded anew, which other processes do."""
    is_asked = any(given[name] is not None for name in ("resize", "max_side", "format"))
    return is_asked and given["workers"] != 0 and given["scheduler"] is given["map"] is None


def _start_workers_early() -> None:
    """Have the process that workers are forked from import torch while this one does the same."""
    forkserver.set_forkserver_preload(["streamshard.pack.job"])
    forkserver.ensure_running()


def _parameters(function: Callable[..., Any]) -> Iterable[Parameter]:
    return inspect.signature(function, eval_str=True).parameters.values()


def _plain(name: str, value: Any) -> Any:
    """A shared option as the library takes it."""
    if name in ("include", "exclude"):
        return value or ()
    return value.value if isinstance(value, enum.Enum) else value


def _carried_out(scheduler: str | None) -> contextlib.AbstractContextManager[Any]:
    """The options that make a cluster do the work, or none."""
    if scheduler is None:
        return contextlib.nullcontext({})
    from streamshard.pack.cluster import on_cluster

    return on_cluster(scheduler)
