"""`streamshard verify`: what is wrong with a dataset, and what of it can be put right."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from streamshard.cli.options import AsJson, Destination, IndexAt
from streamshard.cli.show import progress, result
from streamshard.errors import UsageError

_PRINTED = 100  # findings


def verify(
    destination: Destination,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every part too.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes, each a shard at a time; all cores where there is much to read.",
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="First rebuild what of .streamshard/ is lost, from whole tars."
        ),
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="With --repair: take tars as they are, though they are not as they were packed.",
        ),
    ] = False,
    index: IndexAt = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of every shard and compare; exit status 1 where something is wrong."""
    if accept_changes and not repair:
        raise UsageError("--accept-changes goes with --repair")
    if not repair:
        value, lines = _verified(destination, index, decode, workers)
    else:
        value, lines = _repaired(destination, index, accept_changes)
        if value["repair"]["left"]:
            value["whole"] = False
        else:
            verified, more = _verified(destination, index, decode, workers)
            value, lines = {**verified, **value}, lines + more
    result(value, lines, as_json=as_json)
    if not value["whole"]:
        raise typer.Exit(1)


def _repaired(
    destination: str, index: str | None, accept: bool
) -> tuple[dict[str, Any], list[str]]:
    """What a repair did, and how to say it."""
    from streamshard.pack.repair import repair

    with progress("repairing") as report:
        done = repair(destination, index=index, accept_changes=accept, progress=report)
    lines = [*done.done, *(f"note: {note}" for note in done.notes)]
    lines += [f"not repaired: {reason}" for reason in done.left]
    if not done.done and not done.left:
        lines.append(f"{destination}: nothing to repair")
    if done.was and done.fingerprint and done.was != done.fingerprint:
        lines.append(f"{destination}: a new fingerprint, {done.fingerprint}; it was {done.was}")
    return {"repair": dataclasses.asdict(done)}, lines


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
