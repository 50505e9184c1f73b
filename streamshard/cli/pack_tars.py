"""`streamshard pack tars`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamshard.cli.options import Destination, Keys
from streamshard.cli.packing import pack_command


@pack_command("packing tars")
def pack_tars(
    pattern: Annotated[
        str, typer.Argument(help="A folder of tars, one tar, or several by braces and wildcards.")
    ],
    destination: Destination,
    keys: Annotated[
        Keys, typer.Option(help="As the tar has them, or number of the tar and of the sample.")
    ] = Keys.path,
    **options: Any,
) -> Any:
    """Pack tars that others wrote, also compressed or remote ones: cut anew, and shuffled."""
    from streamshard.pack import tars

    return tars.pack_tars(pattern, destination, keys=keys.value, **options)
