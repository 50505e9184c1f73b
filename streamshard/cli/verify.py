"""`streamshard verify`: what is wrong with a dataset, and what of it can be put right."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamshard.cli.options import AsJson, Destination, IndexAt
from streamshard.cli.show import progress, result

_PRINTED = 100  # findings


def verify(
    destination: Destination,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every part too.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes, a shard each at a time; 0: this one; else all cores."),
    ] = None,
    index: IndexAt = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of every shard and compare; exit status 1 where something is wrong."""
    value, lines = _verified(destination, index, decode, workers)
    result(value, lines, as_json=as_json)
    if not value["whole"]:
        raise typer.Exit(1)


def _verified(
    destination: str, index: str | None, decode: bool, workers: int | None
) -> tuple[dict[str, Any], list[str]]:
    """The result of a verification, and how to say it."""
    from streamshard.stream.reader import Shards

    shards = Shards(destination, index=index)
    with progress("verifying") as report:
        findings = list(shards.find_damage(report, decode=decode, workers=workers))
    value = {"whole": not findings, "samples": len(shards), "findings": findings}
    if not findings:
        count = len(shards.manifest.table)
        return value, [f"{destination}: {len(shards)} samples in {count} shards, all whole"]
    more = len(findings) - _PRINTED
    rest = [f"and {more} more; --json lists all"] if more > 0 else []
    return value, findings[:_PRINTED] + rest
