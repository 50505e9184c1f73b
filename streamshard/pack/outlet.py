"""What is written to a tar, hashed and written behind the back of what makes it."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

_PIECE = 1 << 20  # bytes that go to the thread together: it needs the interpreter twice for each
_AHEAD = 8  # pieces in flight, which bounds the memory


class Outlet:
    """Bytes in order into a file and into its SHA-256, in a thread where there are many.

    Hashing and writing need no interpreter, so they take place beside reading and encoding.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "streamshard-outlet")  # starts when it is needed
        self._in_flight: deque[Future[None]] = deque()
        self._pieces: list[bytes] = []
        self._held = self.size = 0

    def put(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            OSError: Those or earlier ones could not be written.
        """
        self._pieces.append(data)
        self._held += len(data)
        self.size += len(data)
        if self._held >= _PIECE:
            if len(self._in_flight) >= _AHEAD:
                self._in_flight.popleft().result()
            self._in_flight.append(self._thread.submit(self._write, self._taken()))

    def finish(self) -> bytes:
        """Wait until all is written; returns the SHA-256.

        Raises:
            OSError: Something could not be written.
        """
        while self._in_flight:
            self._in_flight.popleft().result()
        self._write(self._taken())
        self.stop()
        return self._digest.digest()

    def stop(self) -> None:
        """Write nothing from here on: the file may be closed."""
        self._thread.shutdown(cancel_futures=True)

    def _taken(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces, self._held = [], 0
        return data

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)
