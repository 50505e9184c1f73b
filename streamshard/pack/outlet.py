"""What goes into a tar is hashed and written behind the back of what makes it."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from streamshard.store.base import full_disk_named

_PIECE = 1 << 20  # bytes that go to the thread together: it needs the interpreter twice for each
_AHEAD = 8  # pieces in flight, which bounds the memory


class Outlet:
    """Bytes in order into a file and into its SHA-256, in a thread where there are many.

    Hashing and writing need no interpreter, so they take place beside reading and encoding. Pieces
    are used again: fresh memory would have to be cleared for each.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        """Begin.

        Args:
            file: Open for writing; it stays open.
            where: What to call it in errors.
        """
        self._file, self._where, self._digest = file, where, hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "streamshard-outlet")  # starts when it is needed
        self._in_flight: deque[Future[memoryview]] = deque()
        self._piece = _fresh()
        self._held = self.size = 0

    def put(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            StoreError: Those or earlier ones could not be written.
        """
        self.size += len(data)
        end = self._held + len(data)
        if end < _PIECE:
            self._piece[self._held : end] = data
            self._held = end
        else:
            self._put_some(memoryview(data))

    def _put_some(self, data: memoryview) -> None:
        """Fill the piece and pass it on, as often as there is enough for that."""
        while data:
            some, data = data[: _PIECE - self._held], data[_PIECE - self._held :]
            self._piece[self._held : self._held + len(some)] = some
            self._held += len(some)
            if self._held == _PIECE:
                self._in_flight.append(self._thread.submit(self._write, self._piece, _PIECE))
                is_full = len(self._in_flight) >= _AHEAD
                self._piece = self._in_flight.popleft().result() if is_full else _fresh()
                self._held = 0

    def finish(self) -> bytes:
        """Wait until all is written; returns the SHA-256.

        Raises:
            StoreError: Something could not be written.
        """
        while self._in_flight:
            self._in_flight.popleft().result()
        self._write(self._piece, self._held)
        self.stop()
        return self._digest.digest()

    def stop(self) -> None:
        """Write nothing from here on: the file may be closed."""
        self._thread.shutdown(cancel_futures=True)

    def _write(self, piece: memoryview, length: int) -> memoryview:
        data = piece[:length]
        self._digest.update(data)
        with full_disk_named(self._where):
            self._file.write(data)
        return piece


def _fresh() -> memoryview:
    """Memory for a piece; a bytearray itself would copy twice what is assigned to a part of it."""
    return memoryview(bytearray(_PIECE))
