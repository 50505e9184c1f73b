"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Destination = Annotated[str, typer.Argument(metavar="DST", help="Folder or URL of the dataset.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
IndexAt = Annotated[
    str | None, typer.Option("--index", help="Where .streamshard lies, if not beside the tars.")
]
