"""`streamshard pack images`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamshard.cli.options import Destination, Keys
from streamshard.cli.packing import pack_command


@pack_command("packing images")
def pack_images(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder: class folders, or flat.")],
    destination: Destination,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A .csv or .json with the label of each path; else by folder."
        ),
    ] = None,
    keys: Annotated[Keys, typer.Option(help="Path below SRC, or number.")] = Keys.path,
    **options: Any,
) -> Any:
    """Pack a folder of images; they keep their bytes unless something else is asked for."""
    from streamshard.pack import images

    return images.pack_images(source, destination, labels=labels, keys=keys.value, **options)
