from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamshard as ss
from streamshard.errors import StoreError
from streamshard.pack import outlet
from streamshard.pack.outlet import Outlet
from tests.pack.sources import files_of

PIECE = 64


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that they are passed on all the time."""
    monkeypatch.setattr(outlet, "_PIECE", PIECE)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "outlet" in thread.name]


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=3 * PIECE) | st.integers(0, 40).map(bytes), max_size=40))
def test_bytes_arrive_in_order_and_hashed_however_they_come(chunks: list[bytes]) -> None:
    file, whole = io.BytesIO(), b"".join(chunks)
    way_out = Outlet(file, "here")
    for chunk in chunks:
        way_out.put(chunk)
    assert way_out.size == len(whole)
    assert way_out.finish() == hashlib.sha256(whole).digest()
    assert file.getvalue() == whole
    assert threads() == []


class Disk:
    """A file that takes so many bytes, each write only when it may."""

    def __init__(self, room: int = 1 << 30, gate: threading.Event | None = None) -> None:
        self.room, self.gate = room, gate

    def write(self, data: Any) -> int:
        if self.gate:
            self.gate.wait()
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return len(data)


def to(disk: Disk) -> Outlet:
    return Outlet(cast("BinaryIO", disk), "s3://here/a.tar")


@pytest.mark.parametrize("room", [0, 5 * PIECE, 40 * PIECE + 1])
def test_a_full_disk_is_named_by_the_time_all_is_written(room: int) -> None:
    way_out = to(Disk(room))

    def write(pieces: int) -> None:
        for _ in range(pieces):
            way_out.put(bytes(PIECE))
        way_out.finish()

    for pieces in (room // PIECE + 1, 1000):  # at the end; in the middle
        with pytest.raises(StoreError, match=r"^s3://here/a.tar: No space left on device$"):
            write(pieces)
        way_out.stop()
        assert threads() == []
        way_out = to(Disk(room))
    write(room // PIECE)


def test_what_is_not_written_yet_is_bounded() -> None:
    gate = threading.Event()
    way_out = to(Disk(gate=gate))
    many = 5 * outlet._AHEAD

    def fill() -> None:
        for _ in range(many):
            way_out.put(bytes(PIECE))

    filling = threading.Thread(target=fill)
    filling.start()
    filling.join(0.1)
    assert filling.is_alive()
    assert way_out.size <= (outlet._AHEAD + 1) * PIECE
    gate.set()
    filling.join()
    way_out.finish()


def test_a_dataset_has_the_same_bytes_with_a_thread_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str) -> dict[str, bytes]:
        with ss.ShardWriter(tmp_path / name, shard_size=20_000) as writer:
            for number in range(100):
                writer.write({"__key__": f"{number}", "bin": bytes([number]) * number * 20})
        return files_of(tmp_path / name)

    beside = write("beside")
    monkeypatch.setattr(outlet, "_PIECE", 1 << 20)
    assert write("alone") == beside
    assert len([name for name in beside if name.endswith(".tar")]) > 2


def test_a_writer_that_gives_up_leaves_no_thread(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ss.ShardWriter(tmp_path / "own") as writer:  # noqa: PT012
        writer.write({"__key__": "a", "bin": bytes(50 * PIECE)})
        assert threads()
        raise RuntimeError
    assert threads() == []
    assert files_of(tmp_path) == {}
