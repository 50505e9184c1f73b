"""`streamshard pack table`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamshard.cli.options import Destination, Keys
from streamshard.cli.packing import pack_command


@pack_command("packing images")
def pack_table(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A .csv, .jsonl or .parquet; a path or URL.")
    ],
    destination: Destination,
    image: Annotated[str, typer.Option(metavar="COLUMN", help="The paths of the images.")],
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The labels: text, or integers.")
    ] = None,
    keys: Annotated[Keys, typer.Option(help="Path in FILE, or number of the row.")] = Keys.path,
    **options: Any,
) -> Any:
    """Pack the images that a table names; further columns become the part json."""
    from streamshard.pack import table

    return table.pack_table(
        source, destination, image=image, label=label, keys=keys.value, **options
    )
