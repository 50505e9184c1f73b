"""`streamshard cat` and `streamshard unpack`: the bytes of samples again."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from streamshard.cli.options import AsJson, Destination, IndexAt
from streamshard.cli.show import format_bytes, progress, result


def cat(
    destination: Destination,
    name: Annotated[str, typer.Argument(metavar="KEY[.PART]", help="A sample, or one part of it.")],
    index: IndexAt = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what there is as one JSON object instead.")
    ] = False,
) -> None:
    """Write the bytes of a part to standard output; of a key with several parts, list these."""
    from streamshard.stream.keys import find_part, sizes_of
    from streamshard.stream.reader import Shards

    shards = Shards(destination, index=index)
    shard, row, part = find_part(shards, name)
    sizes = sizes_of(shards, shard, row)
    if part is None and len(sizes) == 1:
        part = next(iter(sizes))
    if part is not None and not as_json:
        sys.stdout.buffer.write(shards.read(shard, row, part) or b"")
        sys.stdout.buffer.flush()
        return
    key = shards.index(shard).keys[row]
    told = {part: sizes[part]} if part is not None else sizes
    value = {"key": key, "shard": shards.manifest.table[shard].name, "parts": told}
    result(value, [f"{key}.{part}\t{size}" for part, size in told.items()], as_json=as_json)


def unpack(
    destination: Destination,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Local folder for the files.")],
    keys: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Only this key, or those that match `* ?`. Once for each."
        ),
    ] = None,
    index: IndexAt = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write every part of every sample as a file KEY.PART again."""
    from streamshard.stream import unpack

    with progress("unpacking") as report:
        done = unpack.unpack(
            destination, out, keys=keys or (), index=index, overwrite=overwrite, progress=report
        )
    line = f"{out}: {done.samples} samples, {done.files} files, {format_bytes(done.bytes)}"
    result(done, [line], as_json=as_json)
