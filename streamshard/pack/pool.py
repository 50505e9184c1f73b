"""Processes that encode, each with a pipe of its own.

The pool of `concurrent.futures` has one pipe for all results, so of a worker that is killed in the
middle of one, as a machine short of memory does it, the rest is waited for without end.
"""

from __future__ import annotations

import gc
import io
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from streamshard.codec.base import Packed
from streamshard.errors import WorkerError
from streamshard.pack.worker import begin_worker

_COUNT = 4  # bytes that say how many buffers follow what is pickled
_LARGE = 1 << 16  # bytes of a part that are sent by themselves


class _Task(NamedTuple):
    future: Future[Any]
    function: Callable[..., Any]
    given: tuple[Any, ...]


class WorkerPool(Executor):
    """Does one call at a time in each of its processes; one that dies fails what it had."""

    def __init__(self, workers: int, context: BaseContext, imports: Sequence[str] = ()) -> None:
        """Start the processes.

        Args:
            workers: How many.
            context: How they are started.
            imports: Modules that they need, imported once for all of them where they are forked:
                torch and PyG take 270 MB of memory in each process that imports them by itself.

        Raises:
            WorkerError: One could not be started.
        """
        self._max_workers = workers  # as executors of `concurrent.futures` call it
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        with _imported(context, imports):
            hired = _hired(context, workers)
        self._processes = [process for _, process in hired]
        # After the last process, since a thread does not survive a fork.
        self._threads = [Thread(target=self._lead, args=hand, daemon=True) for hand in hired]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        """See `Executor`; it takes no arguments by name."""
        assert not named
        future: Future[Any] = Future()
        self._tasks.put(_Task(future, fn, given))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `Executor`: at once, also in the middle of a call."""
        with suppress(Empty):
            while task := self._tasks.get_nowait():
                task.future.cancel()
        for process in self._processes:
            process.kill()
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _lead(self, hand: Connection, process: BaseProcess) -> None:
        """Pass on to one process what there is to do, until nothing is or it dies."""
        with hand:
            while task := self._tasks.get():
                if task.future.set_running_or_notify_cancel() and not _is_done(task, hand):
                    process.join()
                    task.future.set_exception(_died(process.exitcode or 0))
                    break
        process.join()


@contextmanager
def _imported(context: BaseContext, imports: Sequence[str]) -> Iterator[None]:
    """What is forked meanwhile has these modules, in memory that stays shared."""
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["streamshard.pack.job", *imports])
    if context.get_start_method() != "fork" or gc.get_freeze_count():
        yield
        return
    for name in imports:
        import_module(name)
    gc.freeze()  # else a collection in one of them would write to every object
    try:
        yield
    finally:
        gc.unfreeze()


def _hired(context: BaseContext, workers: int) -> list[tuple[Connection, BaseProcess]]:
    """All processes, or none of them."""
    hired: list[tuple[Connection, BaseProcess]] = []
    try:
        while len(hired) < workers:
            hired.append(_hire(context))
    except (EOFError, OSError) as error:  # EOFError: killed before it answered the fork server
        for _, process in hired:
            process.kill()
            process.join()
        why = str(error) or type(error).__name__
        raise WorkerError(f"a worker of the pack could not be started ({why})") from None
    return hired


def _hire(context: Any) -> tuple[Connection, BaseProcess]:
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there,))
    process.start()
    there.close()  # so that the end of the process is the end of the pipe
    return here, process


def _is_done(task: _Task, hand: Connection) -> bool:
    """Whether a process did what it was given, well or not; false when it is dead."""
    try:
        order = ForkingPickler.dumps((task.function, task.given))
    except Exception as error:
        task.future.set_exception(error)
        return True
    try:
        hand.send_bytes(order)
        failed, value = _received(hand)
    except (EOFError, OSError):
        return False
    if failed:
        task.future.set_exception(value)
    else:
        task.future.set_result(value)
    return True


def _died(status: int) -> WorkerError:
    if status >= 0:
        return WorkerError(f"a worker of the pack ended with status {status}")
    name = signal.Signals(-status).name
    memory = " (was there memory enough?)" if name == "SIGKILL" else ""
    return WorkerError(f"a worker of the pack was killed by {name}{memory}")


def _received(hand: Connection) -> Any:
    """What a process sent by `_send`."""
    said = hand.recv_bytes()
    buffers = [hand.recv_bytes() for _ in range(int.from_bytes(said[:_COUNT], "little"))]
    return pickle.loads(memoryview(said)[_COUNT:], buffers=buffers)


def _work(orders: Connection) -> None:
    """What a process does: what it is told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this one
    begin_worker()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            _send(orders, *_answer(orders))


def _answer(orders: Connection) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Whether the next call failed, and what it gave or raised, pickled."""
    try:
        function, given = orders.recv()
        return _pickled((False, function(*given)))
    except Exception as error:
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
        return _pickled((True, error))


class _Pickler(pickle.Pickler):
    """Leaves the bytes of large parts where they are, for a copy of 36 MB is worth avoiding."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Packed or len(value.data) < _LARGE:
            return NotImplemented
        return Packed, (pickle.PickleBuffer(value.data), value.facts, value.schema)


def _pickled(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append).dump(value)
    return file.getvalue(), buffers


def _send(hand: Connection, said: bytes, buffers: Sequence[pickle.PickleBuffer]) -> None:
    hand.send_bytes(len(buffers).to_bytes(_COUNT, "little") + said)
    for buffer in buffers:
        hand.send_bytes(buffer.raw())
