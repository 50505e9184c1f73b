"""`streamshard pack tars`."""

from __future__ import annotations

from typing import Annotated

import typer

from streamshard.cli.options import (
    AsJson,
    Destination,
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
    Seed,
    ShardSize,
    Shuffle,
    Skip,
    Split,
    Workers,
    fractions_of,
)
from streamshard.cli.show import print_summary, progress, tell_finished


def pack_tars(
    pattern: Annotated[
        str, typer.Argument(help="A folder of tars, one tar, or several by braces and wildcards.")
    ],
    destination: Destination,
    shard_size: ShardSize = "256MB",
    resize: Resize = None,
    max_side: MaxSide = None,
    format: Formatted = None,
    quality: Quality = 90,
    workers: Workers = None,
    shuffle: Shuffle = True,
    seed: Seed = 0,
    include: Include = None,
    exclude: Exclude = None,
    map: Mapped = None,
    split: Split = None,
    on_error: Skip = OnError.stop,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Pack tars that others wrote, also compressed or remote ones: cut anew, and shuffled."""
    from streamshard.pack import tars

    tell_finished(destination, resume=resume)
    with progress("packing tars") as report:
        summary = tars.pack_tars(
            pattern,
            destination,
            shard_size=shard_size,
            resize=resize,
            max_side=max_side,
            format=format.value if format else None,
            quality=quality,
            shuffle=shuffle,
            seed=seed,
            include=include or (),
            exclude=exclude or (),
            map=map,
            split=fractions_of(split),
            on_error=on_error.value,
            resume=resume,
            overwrite=overwrite,
            workers=workers,
            start_method="forkserver",  # the progress bar's thread would not survive a plain fork
            progress=report,
        )
    print_summary(summary, destination, as_json=as_json)
