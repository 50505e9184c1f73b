"""Packing: a source through an executor into a writer, in an order that does not depend on either.

The bytes written are the same whatever the number of workers: samples are encoded anywhere, and
appended here, one after another, in the order of the source.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal

from streamshard.codec.base import Packed
from streamshard.errors import SampleError, UsageError
from streamshard.pack.encode import Encoder
from streamshard.pack.sources import (
    Graphs,
    ImageFolder,
    ImageFormat,
    ImageLoader,
    Keys,
    Sample,
    Source,
    chunks,
    graphs_of,
)
from streamshard.pack.writer import ShardWriter

if TYPE_CHECKING:
    from torch_geometric.data import Data

_CHUNK = 32  # inputs that travel to a worker together
_AHEAD = 2  # chunks in flight for each worker, which bounds the memory

OnError = Literal["raise", "skip"]
Progress = Callable[[int, int | None, int], None]  # samples done, samples in all, bytes done


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


@dataclass(frozen=True)
class _EncodeChunk:
    """Loads and encodes some inputs; errors come back as values, in their places."""

    load: Callable[[Any], Sample]
    encoder: Encoder

    def __call__(self, inputs: list[Any]) -> list[tuple[str, dict[str, Packed]] | SampleError]:
        results: list[tuple[str, dict[str, Packed]] | SampleError] = []
        for item in inputs:
            try:
                results.append(self.encoder(self.load(item)))
            except SampleError as error:
                results.append(error)
        return results


def pack(
    source: Source,
    writer: ShardWriter,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> Summary:
    """Write a source's samples and close the writer.

    Args:
        source: Where samples come from.
        writer: Where they go.
        workers: Processes that load and encode; by default all cores where the source transforms
            samples, and this process alone where it only reads them.
        executor: Use this one instead.
        on_error: "raise" ends at the first input that can't be packed, "skip" counts and lists it.
        progress: Called now and then.

    Raises:
        SampleError: An input can't be packed, and `on_error` is "raise".
    """
    if on_error not in ("raise", "skip"):
        raise UsageError(f'on_error is {on_error!r}; it must be "raise" or "skip"')
    begin = time.monotonic()
    summary = Summary(notes=source.notes)
    inputs = source.inputs()
    total = len(inputs) if isinstance(inputs, Sized) else None
    encode = _EncodeChunk(source.load, Encoder(source.codecs))
    with writer:
        for result in _encoded(inputs, encode, _workers(source, workers), executor):
            try:
                if isinstance(result, SampleError):
                    raise result
                writer.append(*result)
                summary.samples += 1
            except SampleError as error:
                if on_error == "raise":
                    raise
                summary.skipped.append(str(error))
            if progress:
                progress(summary.samples + len(summary.skipped), total, writer.bytes_written)
    table = writer.manifest.table
    summary.shards, summary.bytes = len(table), int(table.nbytes.sum())
    summary.fingerprint = writer.manifest.fingerprint
    summary.seconds = time.monotonic() - begin
    return summary


def _workers(source: Source, workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if source.portable else 0
    if workers < 0:
        raise UsageError(f"workers is {workers}; it must be at least 0")
    return workers if source.portable else 0


def _encoded(
    inputs: Iterable[Any], encode: _EncodeChunk, workers: int, executor: Executor | None
) -> Iterator[tuple[str, dict[str, Packed]] | SampleError]:
    """Encoded samples in the order of their inputs, a bounded number of chunks ahead."""
    if executor is None and workers == 0:
        for item in inputs:
            yield from encode([item])
        return
    # forkserver: the parent may run threads (a progress bar), which a plain fork does not survive.
    own = None if executor else ProcessPoolExecutor(workers, get_context("forkserver"))
    pool = executor or own
    assert pool
    try:
        pending: deque[Future[list[tuple[str, dict[str, Packed]] | SampleError]]] = deque()
        for chunk in chunks(inputs, _CHUNK):
            pending.append(pool.submit(encode, chunk))
            if len(pending) > _AHEAD * max(workers, 2):
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        if own:
            own.shutdown(cancel_futures=True)


def pack_images(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    shard_size: int | str = "256MB",
    resize: int | None = None,
    format: ImageFormat | None = None,
    quality: int = 90,
    shuffle: bool = True,
    seed: int = 0,
    keys: Keys = "path",
    on_error: OnError = "raise",
    overwrite: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Pack a folder of images, one folder for each class or flat, into shards.

    Args:
        source: The folder. Parts: the images' suffix (`jpg`, `png`, …) and, with class folders,
            `cls`, the number of the class.
        destination: Folder or URL; it must hold nothing yet.
        shard_size: Bytes of a shard, a number or such as "256MB" (decimal).
        resize: Pixels of the shorter side; by default images keep their bytes.
        format: jpg, png, webp or npy, a uint8 array (3, height, width).
        quality: Of jpg and webp, 1 to 100, where images are encoded.
        shuffle: Pack in random order; a folder is sorted by class, and a stream mixes only what
            lies near.
        seed: Of that order.
        keys: "path" or "number".
        on_error: "raise", or "skip" to leave out what can't be read.
        overwrite: Replace the dataset that lies there.
        workers: Processes; by default all cores where images are encoded, none where they are not.
        executor: Use this `concurrent.futures` executor instead.
        storage_options: For fsspec.
        progress: Called with samples done, samples in all, and bytes done.

    Returns:
        What was done.

    Raises:
        PackError: The folder can't be packed as asked.
        SampleError: An image can't be read, and `on_error` is "raise".
        UsageError: The destination is not empty, or an argument breaks its rule.
    """
    if keys not in ("path", "number"):
        raise UsageError(f'keys is {keys!r}; it must be "path" or "number"')
    if format not in (None, "jpg", "png", "webp", "npy"):
        raise UsageError(f"format is {format!r}; it must be jpg, png, webp or npy")
    if not 1 <= quality <= 100 or (resize is not None and resize < 1):
        raise UsageError(f"quality {quality} must be 1 to 100, resize {resize} at least 1 pixel")
    folder = ImageFolder(
        os.fspath(source),
        keys=keys,
        seed=seed if shuffle else None,
        loader=ImageLoader(format, resize, quality),
    )
    writer = ShardWriter(
        os.fspath(destination),
        shard_size=shard_size,
        classes=folder.classes,
        overwrite=overwrite,
        storage_options=storage_options,
    )
    return pack(
        folder, writer, workers=workers, executor=executor, on_error=on_error, progress=progress
    )


def pack_graphs(
    source: str | Iterable[Data],
    destination: str | os.PathLike[str],
    *,
    shard_size: int | str = "64MB",
    shuffle: bool = True,
    seed: int = 0,
    allow_empty: bool = False,
    allow_nan: bool = False,
    on_error: OnError = "raise",
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Pack graphs into shards, each as one part `graph`; keys are their numbers.

    Args:
        source: An iterable of PyG `Data`, or `module:callable` or `file.py:callable` of one.
        destination: Folder or URL; it must hold nothing yet.
        shard_size: Bytes of a shard, a number or such as "64MB" (decimal).
        shuffle: Pack in random order, where the source has a length and can be indexed.
        seed: Of that order.
        allow_empty: Take graphs without nodes.
        allow_nan: Take NaN and infinity in fields.
        on_error: "raise", or "skip" to leave out what can't be packed.
        overwrite: Replace the dataset that lies there.
        storage_options: For fsspec.
        progress: Called with samples done, samples in all, and bytes done.

    Returns:
        What was done.

    Raises:
        SampleError: A graph can't be packed, and `on_error` is "raise"; named by its number.
        UsageError: The destination is not empty, or an argument breaks its rule.
    """
    graphs = Graphs(
        graphs_of(source) if isinstance(source, str) else source,
        seed=seed if shuffle else None,
        allow_empty=allow_empty,
        allow_nan=allow_nan,
    )
    writer = ShardWriter(
        os.fspath(destination),
        shard_size=shard_size,
        codecs=graphs.codecs,
        overwrite=overwrite,
        storage_options=storage_options,
    )
    return pack(graphs, writer, on_error=on_error, progress=progress)
