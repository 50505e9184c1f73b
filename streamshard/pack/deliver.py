"""From a source to its dataset, or to one dataset for each split: the last step of every pack."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

from streamshard.errors import UsageError
from streamshard.pack.choose import check_split, split_source
from streamshard.pack.job import Summary, pack
from streamshard.pack.mapping import Mapped, name_of
from streamshard.pack.options import PackOptions, execution_of, globs_of, reachable, seed_of
from streamshard.pack.sources import KeyedSource
from streamshard.pack.writer import ShardWriter
from streamshard.shard.manifest import Manifest
from streamshard.store.filesystem import open_store


@dataclass
class SplitSummary(Summary):
    """What a pack with `--split` did, all splits together; each has a fingerprint of its own.

    Attributes:
        splits: What was done for each of them, by name.
    """

    splits: dict[str, Summary] = field(default_factory=dict)


def deliver(
    source: KeyedSource,
    destination: str | os.PathLike[str],
    *,
    shard_size: int | str,
    about: Mapping[str, Any],
    portable: bool = True,
    remark: Callable[[Manifest], list[str]] | None = None,
    **options: Unpack[PackOptions],
) -> Summary:
    """Pack a source, once for each split, each time only the inputs that belong to it.

    Inputs are divided by their keys before they are loaded, so an input is loaded and encoded once;
    what `map` makes of one input stays together, whatever keys it gives.

    Args:
        source: Where samples come from.
        destination: Of the dataset; of those of the splits, the folder above.
        shard_size: See `ShardWriter`.
        about: See `pack`; what of `options` decides the bytes need not be among it.
        portable: Whether inputs may be sent to other processes for the sake of `map`.
        remark: Notes on what was written.
        **options: Of the pack.

    Raises:
        UsageError: Both `resume` and `split` are given.
    """
    map, split = options.get("map"), options.get("split")
    overwrite, resume = options.get("overwrite", False), options.get("resume", False)
    storage_options = options.get("storage_options")
    if resume and split is not None:
        # A split that is finished does not tell the fractions it was made with.
        raise UsageError(
            "resume and split do not go together; --overwrite (overwrite=True) begins anew"
        )

    if split is not None:
        check_split(split)
    whole = os.fspath(destination).rstrip("/") if split else destination
    if split:
        _check_room(f"{whole}", split, storage_options)
    sources = {"": source} if split is None else split_source(source, split)
    found = reachable(map, options) if isinstance(map, str) else map
    # Found before anything is made at the destination.
    mapped = {
        name: None if found is None else Mapped(one, found, portable=portable)
        for name, one in sources.items()
    }

    def writer_to(name: str) -> ShardWriter:
        return ShardWriter(
            f"{whole}/{name}" if name else whole,
            shard_size=shard_size,
            classes=source.classes,
            codecs=source.codecs,
            overwrite=overwrite,
            resume=resume,
            storage_options=storage_options,
        )

    def pack_one(name: str, writer: ShardWriter) -> Summary:
        changed = mapped[name]
        summary = pack(
            changed or sources[name],
            writer,
            about={**about, **_deciding(options)},
            goes_on=split is None,
            **execution_of(options),
        )
        notes = [
            *(changed.remarks if changed else []),
            *(remark(writer.manifest) if remark else []),
        ]
        return dataclasses.replace(summary, notes=[*summary.notes, *notes])

    with contextlib.ExitStack() as held:  # one that fails lets go of the others' destinations
        writers: dict[str, ShardWriter] = {}
        for name in sources:
            writers[name] = writer_to(name)
            held.push(writers[name])
        done = {name: pack_one(name, writer) for name, writer in writers.items()}
    return done[""] if split is None else _together(done)


def _deciding(options: PackOptions) -> dict[str, Any]:
    """What of the options decides the bytes, as JSON has it."""
    globs, map = globs_of(options), options.get("map")
    return {
        "seed": seed_of(options),
        "include": list(globs.include),
        "exclude": list(globs.exclude),
        "map": None if map is None else name_of(map),
    }


def _check_room(
    destination: str, split: Mapping[str, float], storage_options: Mapping[str, Any] | None
) -> None:
    """Refuse a folder that holds something beside the splits, such as a dataset of its own."""
    store = open_store(destination, storage_options)
    if others := sorted(set(store.list()) - set(split)):
        raise UsageError(f"{store.where} holds {others[0]} already; choose another place")


def _together(splits: dict[str, Summary]) -> SplitSummary:
    notes = dict.fromkeys(note for summary in splits.values() for note in summary.notes)
    each = list(splits.values())
    return SplitSummary(
        samples=sum(summary.samples for summary in each),
        shards=sum(summary.shards for summary in each),
        bytes=sum(summary.bytes for summary in each),
        seconds=sum(summary.seconds for summary in each),
        skipped=[reason for summary in each for reason in summary.skipped],
        notes=list(notes),
        splits=splits,
    )
