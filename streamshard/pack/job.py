"""Packing: a source through an executor into a writer, in an order that does not depend on either.

The bytes written are the same whatever the number of workers: samples are encoded anywhere, and
appended here, one after another, in the order of the source.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, NamedTuple

from streamshard.codec.base import Packed
from streamshard.errors import PackError, SampleError, StoreError, UsageError, WorkerError
from streamshard.pack.encode import Encoder
from streamshard.pack.files import Listed
from streamshard.pack.journal import Journal
from streamshard.pack.options import OnError, Progress
from streamshard.pack.pool import WorkerPool
from streamshard.pack.sources import Sample, Source
from streamshard.pack.writer import ShardWriter

_CHUNK = 32  # inputs that travel to a worker together, at most
_CHUNK_BYTES = 1_000_000  # what comes of them, at most, but for that of a single one
_AHEAD = 2  # chunks in flight for each worker, which bounds the memory
_LARGE = 4_000_000  # bytes of an input of which one is in flight for each worker


@dataclass
class Summary:
    """What a pack did.

    Attributes:
        samples: Written.
        shards: Written.
        bytes: Of all shards.
        seconds: It took.
        skipped: Inputs that were left out because of an error, with the reason.
        notes: What else is worth knowing.
        fingerprint: Of the dataset.
    """

    samples: int = 0
    shards: int = 0
    bytes: int = 0
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""


class _Encoded(NamedTuple):
    """What became of one sample: key and parts, or why there are none; errors are values here."""

    where: str  # in front of what the writer may have against it
    sample: tuple[str, dict[str, Packed]] | SampleError


@dataclass(frozen=True)
class _EncodeChunk:
    """Loads and encodes some inputs."""

    load: Callable[[Any], Sample | list[Sample]]
    encoder: Encoder
    place: Callable[[Any], str] | None

    def __call__(self, inputs: list[Any]) -> list[list[_Encoded]]:
        return [self._load(given) for given in inputs]

    def _load(self, given: Any) -> list[_Encoded]:
        """What one input gives: mostly one sample, none or several where `--map` says so."""
        where = f"{self.place(given)}: " if self.place else ""
        try:
            loaded = self.load(given)
        except SampleError as error:  # which names the place itself
            return [_Encoded(where, error)]
        samples = loaded if isinstance(loaded, list) else [loaded]
        return [self._encode(where, sample) for sample in samples]

    def _encode(self, where: str, sample: Sample) -> _Encoded:
        try:
            return _Encoded(where, self.encoder(sample))
        except SampleError as error:
            return _Encoded(where, SampleError(f"{where}{error}"))


def pack(
    source: Source,
    writer: ShardWriter,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    start_method: str | None = None,
    on_error: OnError = "raise",
    progress: Progress | None = None,
    about: Mapping[str, Any] | None = None,
    goes_on: bool = True,
) -> Summary:
    """Write a source's samples and close the writer, which may be one that goes on.

    Args:
        source: Where samples come from.
        writer: Where they go.
        workers: Processes that load and encode; by default all cores where the source transforms
            samples, and this process alone where it only reads them.
        executor: Use this one instead; `workers` is then how many chunks it does at a time, where
            it does not tell itself.
        start_method: Of those processes: fork, spawn or forkserver; the platform's default if None.
        on_error: "raise" ends at the first input that can't be packed, "skip" counts and lists it.
        progress: Called now and then.
        about: What of the source and its options decides the bytes, as JSON has them; a pack is
            gone on with only where that is the same.
        goes_on: Whether errors may say that the pack can be gone on with.

    Raises:
        SampleError: An input can't be packed, and `on_error` is "raise".
        PackError: The source is not the one that a pack before began with.
    """
    begin = time.monotonic()
    summary = Summary(notes=source.notes)
    if writer.is_closed:
        summary.notes = ["finished already: nothing was done"]
    else:
        with _resumable(writer, goes_on=goes_on), writer:
            if on_error not in ("raise", "skip"):
                raise UsageError(f'on_error is {on_error!r}; it must be "raise" or "skip"')
            with _pool(source, executor, _workers(source, workers), start_method) as pool:
                journal = _write(
                    source,
                    writer,
                    about or {},
                    pool,
                    at_once=getattr(pool, "_max_workers", workers or 1),
                    may_skip=on_error == "skip",
                    progress=progress,
                )
                summary.skipped = journal.skipped
        if journal.dropped:
            summary.notes = [*summary.notes, f"{journal.dropped} inputs were dropped by --map"]
    table = writer.manifest.table
    summary.samples, summary.shards = len(writer.manifest), len(table)
    summary.bytes, summary.fingerprint = int(table.nbytes.sum()), writer.manifest.fingerprint
    summary.seconds = time.monotonic() - begin
    return summary


def _write(
    source: Source,
    writer: ShardWriter,
    about: Mapping[str, Any],
    pool: Executor | None,
    *,
    at_once: int,
    may_skip: bool,
    progress: Progress | None,
) -> Journal:
    """Write what is not written yet; the journal tells what was taken, all in all."""
    inputs = source.inputs()
    total = len(inputs) if isinstance(inputs, Sized) else None
    encode = _EncodeChunk(source.load, Encoder(source.codecs), source.place)
    files = source.files() if isinstance(source, Listed) else None
    journal = writer.begin({**about, "inputs": total}, files)
    for several in _encoded(_still_due(inputs, encode, journal), encode, pool, at_once):
        for encoded in several[journal.within :]:  # of the first, some may be in a finished shard
            try:
                _append(encoded, writer)
                journal.note()
            except SampleError as error:
                if not may_skip:
                    raise
                journal.note(str(error))
        journal.end_input()
        if progress:
            progress(journal.inputs, total, writer.bytes_written)
    if journal.skipped and not writer.samples:
        raise PackError(f"no sample was written: {journal.skipped[0]}")
    return journal


def _still_due(inputs: Iterable[Any], encode: _EncodeChunk, journal: Journal) -> Iterable[Any]:
    """The inputs not whole in finished shards; the last sample there must have the same bytes."""
    if journal.last < 0:
        return inputs
    after = getattr(inputs, "after", None)
    rest = after(journal.last) if after else itertools.islice(inputs, journal.last, None)
    for given in itertools.islice(rest, 1):
        if _gives_last(encode([given])[0], journal):
            if journal.last == journal.inputs:  # some samples of it are still due
                return itertools.chain([given], rest)
            return itertools.islice(rest, journal.inputs - journal.last - 1, None)
    raise PackError(
        f"input {journal.last} of the source is not what is in the last finished shard: the source "
        "changed, or is encoded in another way; --overwrite (overwrite=True) begins anew"
    )


def _gives_last(samples: list[_Encoded], journal: Journal) -> bool:
    """Whether an input gives, where it did, the last sample of what is finished."""
    taken = journal.within if journal.last == journal.inputs else 0
    if len(samples) < max(journal.last_within + 1, taken):
        return False
    last = samples[journal.last_within].sample
    return not isinstance(last, SampleError) and journal.is_last(*last)


@contextlib.contextmanager
def _resumable(writer: ShardWriter, *, goes_on: bool) -> Iterator[None]:
    """Name the remedy where a pack can go on from what is finished."""
    try:
        yield
    except (StoreError, SampleError, WorkerError) as error:
        if not goes_on or not (writer.shards or isinstance(error, StoreError)):
            raise
        done = f"{writer.shards} shard{'s are' if writer.shards != 1 else ' is'} finished"
        raise type(error)(f"{error}; {done}: --resume (resume=True) goes on") from None


def _append(encoded: _Encoded, writer: ShardWriter) -> None:
    if isinstance(encoded.sample, SampleError):
        raise encoded.sample
    try:
        writer.append(*encoded.sample)
    except SampleError as error:
        raise SampleError(f"{encoded.where}{error}") from None


def _workers(source: Source, workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if source.portable else 0
    if workers < 0:
        raise UsageError(f"workers is {workers}; it must be at least 0")
    return workers if source.portable else 0


@contextlib.contextmanager
def _pool(
    source: Source, executor: Executor | None, workers: int, start_method: str | None
) -> Iterator[Executor | None]:
    """The executor given, one of our own, or none where there are no workers."""
    if executor is not None or workers == 0:
        yield executor
        return
    imports = [name for codec in source.codecs.values() for name in getattr(codec, "imports", ())]
    with WorkerPool(workers, get_context(start_method), imports) as own:
        yield own


def _encoded(
    inputs: Iterable[Any], encode: _EncodeChunk, pool: Executor | None, at_once: int
) -> Iterator[list[_Encoded]]:
    """The encoded samples of each input, in order, a bounded number of chunks ahead."""
    if pool is None:
        for given in inputs:
            yield from encode([given])
        return
    pending: deque[Future[list[list[_Encoded]]]] = deque()
    rest, size, ahead = iter(inputs), 1, 1  # until it is known how large they are
    while chunk := [*itertools.islice(rest, size)]:
        pending.append(pool.submit(encode, chunk))
        while len(pending) > ahead * at_once:
            done = pending.popleft().result()
            nbytes = max(1, _nbytes(done) // len(done))
            size = max(1, min(_CHUNK, _CHUNK_BYTES // nbytes))
            ahead = 1 if nbytes > _LARGE else _AHEAD
            yield from done
    while pending:
        yield from pending.popleft().result()


def _nbytes(done: list[list[_Encoded]]) -> int:
    """Bytes of all parts of some inputs."""
    samples = [encoded.sample for several in done for encoded in several]
    parts = [sample[1].values() for sample in samples if not isinstance(sample, SampleError)]
    return sum(len(part.data) for each in parts for part in each)
