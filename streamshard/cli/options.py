"""Arguments that several commands take."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

Destination = Annotated[str, typer.Argument(metavar="DST", help="Folder or URL of the dataset.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
IndexAt = Annotated[
    str | None, typer.Option("--index", help="Where .streamshard lies, if not beside the tars.")
]


class Keys(enum.StrEnum):
    """What keys are made of."""

    path = "path"
    number = "number"


class Format(enum.StrEnum):
    """What images are encoded to."""

    jpg = "jpg"
    png = "png"
    webp = "webp"
    npy = "npy"


class OnError(enum.StrEnum):
    """What becomes of an input that can't be packed."""

    stop = "raise"
    skip = "skip"


ShardSize = Annotated[str, typer.Option(help="Bytes of a shard, such as 64MB (decimal).")]
Shuffle = Annotated[bool, typer.Option(help="Pack in random order.")]
Seed = Annotated[int, typer.Option(min=0, help="Of that order.")]
Skip = Annotated[OnError, typer.Option(help="End at the first bad input, or count and list them.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a pack that was not finished.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the dataset that lies there.")]
Resize = Annotated[int | None, typer.Option(min=1, help="Pixels of the shorter side.")]
MaxSide = Annotated[int | None, typer.Option(min=1, help="Most pixels of the longer side.")]
Formatted = Annotated[Format | None, typer.Option(help="Encode all images to this.")]
Quality = Annotated[int, typer.Option(min=1, max=100, help="Of jpg and webp.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that encode.")]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Of a Dask cluster that encodes, such as tcp://…."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Take only these paths or keys. Once for each pattern."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave these out. Once for each pattern."),
]
ImageColumn = Annotated[
    str | None,
    typer.Option("--image", metavar="COLUMN", help="The images; by default the only ones."),
]
LabelColumn = Annotated[
    str | None,
    typer.Option("--label", metavar="COLUMN", help="The labels: integers, or text."),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Leave this column out. Once for each."),
]
Mapped = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="Called with each sample; gives a sample, a list of samples or None. "
        "Also file.py:function.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=FRACTION,…", help="A dataset for each below DST, such as train=0.9,val=0.1."
    ),
]


def fractions_of(split: str | None) -> dict[str, float] | None:
    """The fractions that `--split` gives."""
    from streamshard.pack.choose import parse_split

    return None if split is None else parse_split(split)
