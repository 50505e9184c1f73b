"""Packing on a Dask cluster, through the executor that its client gives."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import TYPE_CHECKING, Any

import streamshard
from streamshard.errors import UsageError, WorkerError
from streamshard.pack.options import Execution

if TYPE_CHECKING:
    from distributed import Client

_GOES_ON = "; what is finished --resume (resume=True) goes on with"
_ENDED = ("closing", "closed")
_LOOK_SECONDS = 0.3  # between looks at the client
_SECONDS = 10  # to reach the scheduler, and for a first worker to be there


@contextlib.contextmanager
def on_cluster(address: str) -> Iterator[Execution]:
    """What a pack is given to be carried out by the workers of a cluster.

    The workers read the source and encode; this process writes, in order, so the bytes are those
    of a pack without a cluster. Workers must see the source's files under the same paths, and what
    is compressed or remote is first copied to the temporary folder (`TMPDIR`), which they must see
    too. A worker that dies costs only time: Dask gives what it had to another.

    Args:
        address: Of the scheduler, such as `tcp://10.0.0.1:8786`.

    Yields:
        The options `executor` and `workers`, the number of threads of all workers.

    Raises:
        UsageError: Dask is not installed.
        WorkerError: No scheduler answers there, it has no workers, or they lack this version of
            streamshard; or the scheduler ended, or several workers over the same inputs.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UsageError(
            "a scheduler is Dask's: pip install 'streamshard[dask]', here and on its workers"
        ) from None
    with contextlib.closing(_connected(Client, address)) as client:
        _check_workers(client, address)
        threads = sum(client.nthreads().values())
        # Not pure: what is asked for is done, not looked up by a hash of all arguments.
        with client.get_executor(pure=False) as given, _Watched(given, client) as executor:
            try:
                yield {"executor": executor, "workers": threads}
            except KilledWorker as error:
                raise WorkerError(
                    f"{address}: {error.last_worker.address} was the last of several workers that "
                    f"died over the same inputs; their logs say why (memory?){_GOES_ON}"
                ) from None
            except CancelledError:
                raise WorkerError(f"{address}: the scheduler is gone{_GOES_ON}") from None


class _Watched(Executor):
    """Dask's executor, whose futures end when the client gives the scheduler up.

    What is sent while it tries to reach a scheduler again is otherwise waited for without end.
    """

    def __init__(self, executor: Executor, client: Client) -> None:
        self._executor, self._client = executor, client
        self._pending: set[Future[Any]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="streamshard-cluster", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        """See `Executor`."""
        if self._client.status in _ENDED:
            raise CancelledError
        future = self._executor.submit(fn, *given, **named)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `Executor`; the executor that is watched is ended by who made it."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            if self._client.status in _ENDED:
                for future in list(self._pending):
                    future.cancel()


def _connected(kind: type[Client], address: str) -> Client:
    try:
        return kind(address, timeout=_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise WorkerError(f"{address}: no Dask scheduler answers there ({what})") from None


def _check_workers(client: Client, address: str) -> None:
    """Refuse a cluster without workers, or with one that has not this version of streamshard."""
    try:
        client.wait_for_workers(1, timeout=_SECONDS)
    except TimeoutError:
        raise WorkerError(f"{address}: the scheduler has no workers") from None

    def version() -> str:  # inside a function, so that it is sent by value
        import importlib.metadata

        return importlib.metadata.version("streamshard")

    for worker, found in client.run(version, on_error="return").items():
        if found != streamshard.__version__:
            raise WorkerError(
                f"{address}: worker {worker} has {_told(found)}, streamshard "
                f"{streamshard.__version__} is wanted there"
            )


def _told(found: Any) -> str:
    return f"streamshard {found}" if isinstance(found, str) else "no streamshard"
