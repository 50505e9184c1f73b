"""What can go wrong, as one tree.

    StreamshardError
    ├── UsageError         an argument breaks its rule               (also a ValueError)
    ├── StoreError         bytes can't be read or written where they should be
    │   └── NotFoundError  there is nothing by that name
    ├── DatasetError       a dataset can't be used as it is on disk
    │   ├── NoIndexError   tars without sidecars; `streamshard index` makes them
    │   └── DamagedError   bytes, index and manifest disagree; names shard, key and offset
    ├── SampleError        one part of one sample can't be encoded or decoded
    ├── PackError          a source can't be packed as asked
    ├── CursorError        a checkpoint belongs to another dataset, seed or version
    └── WorkerError        a worker process ended without being told to

Every exception is built from one string, so that it survives pickling between processes, and its
message says what happened, the rule or value, and where there is one, the remedy.
"""

from __future__ import annotations


class StreamshardError(Exception):
    """The root of everything that streamshard raises on purpose."""


class UsageError(StreamshardError, ValueError):
    """An argument breaks its rule."""


class StoreError(StreamshardError):
    """Bytes can't be read or written where they should be."""


class NotFoundError(StoreError):
    """There is nothing by that name in the store."""


class DatasetError(StreamshardError):
    """A dataset can't be used as it is on disk."""


class NoIndexError(DatasetError):
    """There are tars but no sidecars; `streamshard index` makes them."""


class DamagedError(DatasetError):
    """Bytes, index and manifest disagree."""


class SampleError(StreamshardError):
    """One part of one sample can't be encoded or decoded."""


class PackError(StreamshardError):
    """A source can't be packed as asked."""


class CursorError(StreamshardError):
    """A checkpoint belongs to another dataset, seed or version."""


class WorkerError(StreamshardError):
    """A worker process ended without being told to."""
