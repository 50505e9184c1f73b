"""`streamshard pack tars`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamshard.cli.options import Destination
from streamshard.cli.packing import pack_command


@pack_command("packing tars")
def pack_tars(
    pattern: Annotated[
        str, typer.Argument(help="A folder of tars, one tar, or several by braces and wildcards.")
    ],
    destination: Destination,
    **options: Any,
) -> Any:
    """Pack tars that others wrote, also compressed or remote ones: cut anew, and shuffled."""
    from streamshard.pack import tars

    return tars.pack_tars(pattern, destination, **options)
