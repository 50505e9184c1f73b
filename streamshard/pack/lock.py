"""A destination belongs to one pack at a time.

On this machine that is a `flock` on `.streamshard/pack.lock`, which the kernel releases when the
process ends, however it ends. (A file system without such locks, as some network ones are, gives no
guarantee.) Elsewhere the lock is an object of that name: best effort, since few stores can create
only what is not there. Two packs that begin in the same moment may both go on until one of them
finds the other's name in the lock, at the latest when its shard is finished; a lock that a killed
pack left is taken over with `--resume` or `--overwrite`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import socket
import uuid
import weakref
from pathlib import Path
from typing import Any, Protocol

from streamshard.errors import NotFoundError, PackError, StoreError
from streamshard.shard.manifest import FOLDER
from streamshard.store.base import Store, translated
from streamshard.store.local import LocalStore

LOCK = f"{FOLDER}/pack.lock"
_TRIES = 100  # a pack that ends removes the file that the next one has just opened

Note = dict[str, Any]


class Lock(Protocol):
    """A destination that is held.

    Attributes:
        found: What a pack that did not end in an orderly way left in the lock; None if there was
            none.
    """

    found: Note | None

    def note(self, *, replacing: bool) -> None:
        """Say in the lock who holds it, and whether the dataset there is to be removed."""

    def check(self) -> None:
        """Refuse to go on where another pack took over.

        Raises:
            PackError: One did.
        """

    def release(self, *, keep: bool = False) -> None:
        """Let go, and remove the lock unless it is to be kept; a second time is nothing."""


def take_lock(store: Store, *, take_over: bool) -> Lock:
    """Hold a destination.

    Args:
        store: The destination.
        take_over: Of a remote one, also where a lock lies that a pack left which may be dead.

    Raises:
        PackError: Another pack holds it.
    """
    if isinstance(store, LocalStore):
        return LocalLock(store)
    return RemoteLock(store, take_over=take_over)


def _me(*, replacing: bool) -> Note:
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "started": _started(pid),
        "replacing": replacing,
    }


def _started(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks; None where there is no such process.

    A number of a process is used again, in a container every time.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return int(fields[19])


def _parse(data: bytes) -> Note:
    try:
        note = json.loads(data)
    except ValueError:  # a full disk, or killed before it was written
        return {}
    return note if isinstance(note, dict) else {}


def _held_by(where: str, note: Note) -> PackError:
    who = f"process {note['pid']} on {note['host']}" if {"pid", "host"} <= set(note) else "unknown"
    return PackError(f"{where}: another pack writes there ({who})")


class LocalLock:
    """A lock that the kernel keeps."""

    def __init__(self, store: LocalStore) -> None:
        self._path, self._where = store.path(LOCK), store.where
        self._made = [
            folder for folder in self._path.parents if not os.path.lexists(folder)
        ]  # from the inside out
        self._fd, is_new = -1, False
        for _ in range(_TRIES):
            is_new = not os.path.lexists(self._path)
            self._fd = self._opened(is_new=is_new)
            if self._fd >= 0 and self._lies_there():
                break
        if self._fd < 0:
            raise StoreError(f"{self._where}/{LOCK}: comes and goes")
        self.found = None if is_new else _parse(os.pread(self._fd, 10_000, 0))
        _HELD.add(self)

    def _opened(self, *, is_new: bool) -> int:
        """The locked file; -1 where it came or went in this moment."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if is_new else 0)
        with translated(f"{self._where}/{LOCK}"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fd = os.open(self._path, flags, 0o666)
            except (FileExistsError, FileNotFoundError):
                return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note = _parse(os.pread(fd, 10_000, 0))
            os.close(fd)
            raise _held_by(self._where, note) from None
        except OSError:  # a file system without locks
            pass
        return fd

    def _lies_there(self) -> bool:
        """Whether the file that was locked still has its name; else it is closed."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                return True
        os.close(self._fd)
        self._fd = -1
        return False

    def note(self, *, replacing: bool) -> None:
        """See `Lock`; of a full disk others don't learn who writes."""
        with contextlib.suppress(OSError):
            data = json.dumps(_me(replacing=replacing)).encode()
            os.ftruncate(self._fd, os.pwrite(self._fd, data, 0))

    def check(self) -> None:
        """See `Lock`: nobody can take over."""

    def release(self, *, keep: bool = False) -> None:
        """See `Lock`; folders that were made for the lock and are empty go too."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if not keep:
                self._path.unlink()
        os.close(self._fd)
        self._fd = -1
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def leave_to_parent(self) -> None:
        """In a forked process: close the descriptor, so that the lock ends with its owner."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.release()


_HELD: weakref.WeakSet[LocalLock] = weakref.WeakSet()


def _leave_all() -> None:
    for lock in _HELD:
        lock.leave_to_parent()


def _release_all() -> None:
    for lock in _HELD:
        lock.release()


os.register_at_fork(after_in_child=_leave_all)
# Before what `release` needs is gone: a writer that nobody closed lives up to the end.
atexit.register(_release_all)


class RemoteLock:
    """A lock that is an object with a name in it."""

    def __init__(self, store: Store, *, take_over: bool) -> None:
        self._store, self._nonce = store, uuid.uuid4().hex
        self._owner = 0  # nobody, until the lock is ours
        self.found = self._read()
        if self.found is not None:
            if _is_alive(self.found):
                raise _held_by(store.where, self.found)
            if not take_over:
                raise PackError(
                    f"{_held_by(store.where, self.found)}, or was killed; "
                    "if it does not run any more, --resume goes on, --overwrite begins anew"
                )
        self.note(replacing=bool(self.found and self.found.get("replacing")))
        self._owner = os.getpid()

    def _read(self) -> Note | None:
        try:
            return _parse(self._store.map(LOCK).tobytes())
        except NotFoundError:
            return None

    def note(self, *, replacing: bool) -> None:
        """See `Lock`."""
        with self._store.create(LOCK) as file:
            file.write(json.dumps({**_me(replacing=replacing), "nonce": self._nonce}).encode())
        self.check()

    def check(self) -> None:
        """See `Lock`."""
        note = self._read() or {}
        if note.get("nonce") != self._nonce:
            self._owner = 0
            raise PackError(f"{_held_by(self._store.where, note)} and took over from this one")

    def release(self, *, keep: bool = False) -> None:
        """See `Lock`."""
        if self._owner != os.getpid():  # a forked process's, or taken over
            return
        self._owner = 0
        if not keep:
            with contextlib.suppress(StoreError):
                self._store.remove(LOCK)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be at its end
            self.release()


def _is_alive(note: Note) -> bool:
    """Whether who holds a lock is known to run: a process of this machine."""
    if note.get("host") != socket.gethostname() or not isinstance(note.get("pid"), int):
        return False
    started = _started(note["pid"])
    return started is not None and started == note.get("started")
