from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

import streamshard as ss
from streamshard.codec.base import Codec
from streamshard.errors import SampleError, WorkerError
from streamshard.pack.job import pack
from streamshard.pack.sources import Sample, pack_order
from tests.pack.sources import files_of, read_by_streamshard


def text_of(number: int) -> Sample:
    """Multiples of seven can't be packed."""
    if number % 7 == 0:
        raise SampleError(f"number {number} is a multiple of 7")
    return {"__key__": f"{number:06d}", "txt": f"text {number}"}


def end_at_once(number: int) -> Sample:
    os._exit(3)


class Numbers:
    """A source of some numbers."""

    classes: Sequence[str] | None = None
    codecs: ClassVar[Mapping[str, Codec]] = {}
    place = None
    portable = True

    def __init__(self, numbers: Sequence[int], load: Callable[[int], Sample] = text_of) -> None:
        self.notes = ["a note"]
        self.load = load
        self._numbers = numbers

    def inputs(self) -> Sequence[int]:
        return self._numbers


def pack_numbers(
    folder: Path, numbers: Sequence[int], shard_size: int = 200_000, **options: Any
) -> Any:
    writer = ss.ShardWriter(folder, shard_size=shard_size)
    return pack(Numbers(numbers), writer, **{"workers": 0, **options})


def test_a_summary_tells_what_was_done(tmp_path: Path) -> None:
    summary = pack_numbers(tmp_path / "own", range(1, 50), shard_size=20_000, on_error="skip")
    shards = ss.open(str(tmp_path / "own"))
    assert summary.samples == len(shards) == 42
    assert summary.skipped == [f"number {n} is a multiple of 7" for n in range(7, 50, 7)]
    assert summary.shards == len(shards.manifest.table) == 3
    assert summary.bytes == sum(path.stat().st_size for path in tmp_path.glob("own/*.tar"))
    assert summary.fingerprint == shards.manifest.fingerprint
    assert summary.notes == ["a note"]
    assert summary.seconds > 0


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_the_first_bad_input_ends_a_pack_whoever_meets_it(tmp_path: Path, threads: int) -> None:
    numbers = [*range(1, 7), *range(8, 14), 14, *range(15, 200), 21]
    options: dict[str, Any] = {}
    pool = ThreadPoolExecutor(threads) if threads else None
    try:
        if pool:
            options["executor"] = pool
        with pytest.raises(SampleError, match="number 14 "):
            pack_numbers(tmp_path / "own", numbers, **options)
    finally:
        if pool:
            pool.shutdown()
    assert not any(name.endswith((".tmp", "manifest.json")) for name in files_of(tmp_path))


def test_the_order_is_that_of_the_source_whichever_chunk_is_ready_first(tmp_path: Path) -> None:
    class Backwards(Executor):
        """Runs nothing until it must, and then the youngest first."""

        def __init__(self) -> None:
            self.waiting: list[Callable[[], None]] = []
            self.most = 0

        def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
            future: Future[Any] = _Waited(self)
            self.waiting.append(lambda: future.set_result(function(*arguments, **named)))
            self.most = max(self.most, len(self.waiting))
            return future

    class _Waited(Future[Any]):
        def __init__(self, executor: Backwards) -> None:
            super().__init__()
            self.executor = executor

        def result(self, timeout: float | None = None) -> Any:
            while self.executor.waiting:
                self.executor.waiting.pop()()
            return super().result(timeout)

    executor = Backwards()
    numbers = [number for number in range(1, 1500) if number % 7]
    pack_numbers(tmp_path / "own", numbers, executor=executor)
    pack_numbers(tmp_path / "alone", numbers)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "alone")
    keys = [int(key) for key, _ in read_by_streamshard(str(tmp_path / "own"))]
    assert keys == numbers
    assert executor.most > 1


def test_only_a_bounded_number_of_samples_is_held(tmp_path: Path) -> None:
    loaded = 0
    furthest = 0
    lock = threading.Lock()

    def load(number: int) -> Sample:
        nonlocal loaded
        with lock:
            loaded += 1
        return {"__key__": f"{number:06d}", "txt": "x"}

    def progress(samples: int, total: int | None, nbytes: int) -> None:
        nonlocal furthest
        furthest = max(furthest, loaded - samples)

    with ThreadPoolExecutor(2) as executor:
        writer = ss.ShardWriter(tmp_path / "own")
        source = Numbers(range(5000), load)
        pack(source, writer, workers=2, executor=executor, progress=progress)
    assert loaded == 5000
    assert furthest < 500


def test_progress_counts_skipped_inputs_too_and_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int | None, int]] = []
    pack_numbers(
        tmp_path / "own",
        range(1, 50),
        on_error="skip",
        progress=lambda *call: calls.append(call),
    )
    assert [samples for samples, _, _ in calls] == list(range(1, 50))
    assert {total for _, total, _ in calls} == {49}
    nbytes = [count for _, _, count in calls]
    assert nbytes == sorted(nbytes)
    size = sum(path.stat().st_size for path in tmp_path.glob("own/*.tar"))
    assert size - 1024 <= nbytes[-1] <= size  # the last end-of-tar mark is still to come


@pytest.mark.parametrize("shard_size", [1_000_000, 3_000])  # all in one shard, or each in its own
def test_a_key_that_is_there_twice_is_skipped_wherever_it_lies(
    tmp_path: Path, shard_size: int
) -> None:
    numbers = [1, 2, 3, 1, 4]
    summary = pack_numbers(tmp_path / "own", numbers, shard_size, on_error="skip")
    assert (summary.samples, len(summary.skipped)) == (4, 1)
    assert "'000001' is there twice" in summary.skipped[0]


def test_a_worker_that_dies_is_an_error_of_ours_and_leaves_no_dataset(tmp_path: Path) -> None:
    writer = ss.ShardWriter(tmp_path / "own")
    with pytest.raises(WorkerError):
        pack(Numbers(range(3), end_at_once), writer, workers=1)
    assert not any(name.endswith((".tmp", "manifest.json")) for name in files_of(tmp_path))


def test_a_pack_order_is_a_permutation_by_the_seed() -> None:
    assert list(pack_order(5, None)) == [0, 1, 2, 3, 4]
    for length in (0, 1, 2, 17, 1000):
        assert sorted(pack_order(length, 3)) == list(range(length))
    assert pack_order(1000, 0) == pack_order(1000, 0) != pack_order(1000, 1)


def test_a_pack_order_brings_far_inputs_together() -> None:
    # Of 100 neighbours, hardly any were neighbours before.
    order = pack_order(10_000, 0)
    near = sum(abs(one - other) < 100 for one, other in itertools.pairwise(order))
    assert near < 400


@pytest.mark.parametrize(("nbytes", "most"), [(10, 32), (100_000, 10), (3_000_000, 1)])
def test_what_is_large_travels_in_smaller_numbers(tmp_path: Path, nbytes: int, most: int) -> None:
    together = []

    class Counting(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *given: Any, **named: Any) -> Any:
            together.append(len(given[0]))
            return super().submit(fn, *given, **named)

    def load(number: int) -> Sample:
        return {"__key__": f"{number:06d}", "bin": bytes(nbytes)}

    count = 8 * most + 20
    with Counting(2) as executor:
        pack(Numbers(range(count), load), ss.ShardWriter(tmp_path / "own"), executor=executor)
    assert sum(together) == count
    assert max(together) == most
