"""`streamshard pack parquet`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamshard.cli.options import Destination, Drop, ImageColumn, Keys, LabelColumn
from streamshard.cli.packing import pack_command


@pack_command("packing images")
def pack_parquet(
    files: Annotated[
        str,
        typer.Argument(
            metavar="FILES",
            help="A folder of .parquet files, one, or several by braces and wildcards.",
        ),
    ],
    destination: Destination,
    image: ImageColumn = None,
    label: LabelColumn = None,
    drop: Drop = None,
    keys: Annotated[
        Keys, typer.Option(help="Number of the row, or the path beside the image's bytes.")
    ] = Keys.number,
    **options: Any,
) -> Any:
    """Pack Parquet files that hold images, such as Hugging Face's."""
    from streamshard.pack import parquet

    return parquet.pack_parquet(
        files, destination, image=image, label=label, drop=drop or (), keys=keys.value, **options
    )
