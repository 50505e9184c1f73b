"""What every pack takes, whatever its source."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, TypedDict, cast

from streamshard.pack.choose import Globs
from streamshard.pack.sources import Sample
from streamshard.store.base import HAS_SCHEME

Function = Callable[[Sample], Any]  # a sample, a list of samples, or None
Map = str | Function
OnError = Literal["raise", "skip"]
Progress = Callable[[int, int | None, int], None]  # inputs done, inputs in all, bytes done


class Execution(TypedDict, total=False):
    """How a pack is carried out; see `PackOptions`."""

    on_error: OnError
    workers: int | None
    executor: Executor | None
    start_method: str | None
    progress: Progress | None


class PackOptions(Execution, total=False):
    """The arguments by name that every `pack_*` takes beside those of its source.

    Attributes:
        shuffle: Pack in random order, the default; a stream mixes only what lies near.
        seed: Of that order; 0 by default.
        include: Patterns (`*` matches slashes too) of the paths or keys that are packed; by default
            all are.
        exclude: Patterns of those that are left out; by default none.
        map: A function, or what it is called (`module:function`, `file.py:function`): it gets each
            sample, a dict with `__key__` and the parts (images, and all parts of tars, as bytes; a
            graph as a PyG `Data`), and returns a sample, a list of samples or None. Those of a list
            are called KEY-0, KEY-1, … where it gives no keys. By default none.
        split: How much goes where, such as `{"train": 0.9, "val": 0.1}`: a dataset for each below
            the destination, divided by key as `ShardDataset.split` does. By default one dataset.
            Tars, MDS and Parquet are read, remote ones fetched, once for each split; graphs of an
            iterable are asked for once for the keys and once for each split, so it must be one that
            begins anew each time, such as a list.
        on_error: "raise" ends at the first input that can't be packed (the default), "skip" leaves
            it out, counts and lists it.
        overwrite: Replace the dataset that lies there; by default the destination must be empty.
        resume: Go on with a pack that was not finished; the bytes are as if it had not ended, where
            the source gives the same inputs and the function of `map` does what it did. Changed
            files are named: of a table only the table is compared, not the images; of remote tars
            only the names; of graphs in memory the last one that is finished. Not with `split`.
        workers: Processes that load and encode. By default all cores where images are encoded or
            `map` is given, none where files keep their bytes; of graphs in files all cores from
            5,000 on. Graphs in memory are always encoded by this process. The bytes do not depend
            on it.
        executor: Use this `concurrent.futures` executor instead; `workers` is then how many chunks
            of inputs it does at a time, where it does not tell itself. Of one that is not on this
            machine the processes must see the source's files under the same paths, and the
            temporary folder, where the rows of Parquet lie, and copies of tars and MDS that are
            remote or compressed.
        start_method: Of those processes: fork, spawn or forkserver; by default the platform's.
        storage_options: For fsspec, to reach the destination, and tars, MDS or Parquet.
        progress: Called with inputs done, inputs in all if that is known, and bytes done.
    """

    shuffle: bool
    seed: int
    include: Sequence[str]
    exclude: Sequence[str]
    map: Map | None
    split: Mapping[str, float] | None
    overwrite: bool
    resume: bool
    storage_options: Mapping[str, Any] | None


def check_names(options: PackOptions) -> None:
    """Refuse an argument that no pack takes, before the source is looked through.

    Raises:
        TypeError: As Python has it.
    """
    if unknown := sorted(set(options) - PackOptions.__optional_keys__):
        raise TypeError(f"a pack takes no argument {unknown[0]!r}")


def execution_of(options: PackOptions) -> Execution:
    """What of the options says how the pack is carried out."""
    return cast(Execution, {n: v for n, v in options.items() if n in Execution.__optional_keys__})


def seed_of(options: PackOptions) -> int | None:
    """The seed of the order in which inputs are packed; None keeps the source's own."""
    return options.get("seed", 0) if options.get("shuffle", True) else None


def globs_of(options: PackOptions) -> Globs:
    """Which inputs are packed."""
    return Globs(tuple(options.get("include", ())), tuple(options.get("exclude", ())))


def reachable(place: str, options: PackOptions | Execution) -> str:
    """A path, URL or `file.py:function` as the processes of a given executor find it.

    They may be in another folder; in our own, paths stay as the user wrote them.
    """
    file = place.rpartition(":")[0] if ".py:" in place else place
    is_there = not HAS_SCHEME.match(place) and os.path.exists(file)
    return os.path.abspath(place) if options.get("executor") and is_there else place
