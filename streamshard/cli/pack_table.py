"""`streamshard pack table`."""

from __future__ import annotations

from typing import Annotated

import typer

from streamshard.cli.options import (
    AsJson,
    Destination,
    Exclude,
    Formatted,
    Include,
    Keys,
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


def pack_table(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A .csv, .jsonl or .parquet; a path or URL.")
    ],
    destination: Destination,
    image: Annotated[str, typer.Option(metavar="COLUMN", help="The paths of the images.")],
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The labels: text, or integers.")
    ] = None,
    shard_size: ShardSize = "256MB",
    resize: Resize = None,
    max_side: MaxSide = None,
    format: Formatted = None,
    quality: Quality = 90,
    workers: Workers = None,
    shuffle: Shuffle = True,
    seed: Seed = 0,
    keys: Annotated[Keys, typer.Option(help="Path in FILE, or number of the row.")] = Keys.path,
    include: Include = None,
    exclude: Exclude = None,
    map: Mapped = None,
    split: Split = None,
    on_error: Skip = OnError.stop,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Pack the images that a table names; further columns become the part json."""
    from streamshard.pack import table

    tell_finished(destination, resume=resume)
    with progress("packing images") as report:
        summary = table.pack_table(
            source,
            destination,
            image=image,
            label=label,
            shard_size=shard_size,
            resize=resize,
            max_side=max_side,
            format=format.value if format else None,
            quality=quality,
            shuffle=shuffle,
            seed=seed,
            keys=keys.value,
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
