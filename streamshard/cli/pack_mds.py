"""`streamshard pack mds`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamshard.cli.options import Destination, Drop, ImageColumn, LabelColumn
from streamshard.cli.packing import pack_command


@pack_command("packing samples")
def pack_mds(
    source: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL with an index.json.")],
    destination: Destination,
    image: ImageColumn = None,
    label: LabelColumn = None,
    drop: Drop = None,
    **options: Any,
) -> Any:
    """Pack a dataset of MosaicML streaming; its package is not needed."""
    from streamshard.pack import mds

    return mds.pack_mds(source, destination, image=image, label=label, drop=drop or (), **options)
