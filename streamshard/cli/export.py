"""`streamshard export`: what other readers want beside the shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from streamshard.cli.options import AsJson, Destination, IndexAt
from streamshard.cli.show import format_bytes, progress, result

if TYPE_CHECKING:
    from streamshard.stream.export import Exported

READERS = "Readers, separated by commas: wids, dali, energon."

Export = Annotated[
    str | None, typer.Option(metavar="READERS", help="Then what `streamshard export --to` writes.")
]


def export(
    destination: Destination,
    to: Annotated[str, typer.Option(metavar="READERS", help=READERS)],
    index: IndexAt = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace files of these names that hold something else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the sidecars of other readers, beside the shards; the shards are not touched."""
    exported = _export(destination, to, index=index, overwrite=overwrite)
    result(exported, [f"{destination}: {_told(exported)}"], as_json=as_json)


def check_formats(to: str | None) -> None:
    """Refuse readers that are not known, before anything is packed.

    Raises:
        UsageError: One is not known.
    """
    if to is not None:
        from streamshard.stream.export import parse_formats

        parse_formats(to)


def export_packed(
    destination: str, to: str | None, split: Mapping[str, float] | None = None
) -> list[str]:
    """Export what was just packed, if asked for, each part of a split; what to say about it."""
    places = [f"{destination}/{name}" for name in split] if split else [destination]
    return [] if to is None else [_told(_export(place, to)) for place in places]


def _export(
    destination: str, to: str, *, index: str | None = None, overwrite: bool = False
) -> Exported:
    from streamshard.stream import export

    with progress("exporting") as report:
        return export.export(destination, to, index=index, overwrite=overwrite, progress=report)


def _told(exported: Exported) -> str:
    readers = ", ".join(exported.formats)
    return f"exported to {readers}: {exported.files} files, {format_bytes(exported.bytes)}"
