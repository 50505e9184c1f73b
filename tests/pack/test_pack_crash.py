"""Packs that are killed, or whose disk is full, at every moment: nothing half is ever seen."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

import streamshard as ss
from streamshard.errors import PackError, StoreError, UsageError
from streamshard.store.local import LocalStore
from tests.cli.command import COMMAND, environment
from tests.pack.crashes import KILLED, assert_nothing_half, in_child
from tests.pack.sources import class_folders, files_of

EACH = 4  # images of each of three classes
OPTIONS: dict[str, Any] = {"shard_size": 6_000}
NO_SPACE = 28


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("photos") / "photos", each=EACH)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a pack that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "own"
    assert ss.pack_images(photos, folder, **OPTIONS).shards > 2
    return files_of(folder)


# At every write, fsync, rename and removal.


class Faults:
    """Counts what a pack does to a disk, and fails or kills at one of these."""

    def __init__(self, at: int, *, kills: bool) -> None:
        self.count, self._at, self._kills = 0, at, kills

    def tick(self) -> None:
        self.count += 1
        if self.count == self._at:
            if self._kills:
                os._exit(KILLED)
            raise OSError(NO_SPACE, os.strerror(NO_SPACE))

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            create, opened = LocalStore.create, Path.open

            @contextlib.contextmanager
            def counted(store: LocalStore, name: str) -> Iterator[BinaryIO]:
                with create(store, name) as file:
                    yield cast("BinaryIO", _Counted(file, self.tick))

            def begun(path: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
                if mode == "wb":
                    self.tick()
                return opened(path, mode, *given, **named)

            patch.setattr(LocalStore, "create", counted)
            patch.setattr(Path, "open", begun)
            names = ["fsync", "replace", *(["unlink", "rmdir"] if self._kills else [])]
            for name in names:
                patch.setattr(os, name, self._before(getattr(os, name)))
            yield

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            self.tick()
            return function(*given, **named)

        return counted


class _Counted:
    """A file whose writes are counted."""

    def __init__(self, file: BinaryIO, tick: Callable[[], None]) -> None:
        self._file, self._tick = file, tick

    def write(self, data: bytes) -> int:
        self._tick()
        return self._file.write(data)


def calls_of(function: Callable[[], object], *, kills: bool) -> int:
    faults = Faults(0, kills=kills)
    with faults.injected():
        function()
    return faults.count


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kills", [True, False], ids=["kill", "full"])
def test_a_fault_at_any_moment_leaves_nothing_half_and_the_pack_goes_on(
    photos: Path, whole: dict[str, bytes], tmp_path: Path, step: int, kills: bool
) -> None:
    calls = calls_of(lambda: ss.pack_images(photos, tmp_path / "all", **OPTIONS), kills=kills)
    assert calls > 50
    for at in range(1, calls + 1, step):
        folder = tmp_path / str(at)

        def pack(folder: Path = folder, at: int = at) -> None:
            with Faults(at, kills=kills).injected():
                ss.pack_images(photos, folder, **OPTIONS)

        assert in_child(pack) == (KILLED if kills else 1), at
        assert_nothing_half(folder, whole)
        if not kills:
            assert not any(name.endswith(("tmp", "lock")) for name in files_of(folder))
        # It goes on; interrupted a second time, a little later, too.
        again = in_child(lambda: pack_on(photos, folder, 2 + at // 2, kills=kills))  # noqa: B023
        assert again in (0, 1, KILLED)
        assert_nothing_half(folder, whole)
        ss.pack_images(photos, folder, **OPTIONS, resume=True)
        assert files_of(folder) == whole, at
        shutil.rmtree(folder)


def pack_on(photos: Path, folder: Path, at: int, *, kills: bool) -> None:
    with Faults(at, kills=kills).injected():
        ss.pack_images(photos, folder, **OPTIONS, resume=True)


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_while_a_dataset_is_replaced_leaves_the_old_one_the_new_one_or_none(
    photos: Path, whole: dict[str, bytes], tmp_path: Path, step: int
) -> None:
    ss.pack_images(photos, tmp_path / "old", **OPTIONS, seed=7)
    old = files_of(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "all")
    calls = calls_of(
        lambda: ss.pack_images(photos, tmp_path / "all", **OPTIONS, overwrite=True), kills=True
    )
    for at in [*range(1, 20), *range(20, calls + 1, step)]:
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "old", folder)

        def pack(folder: Path = folder, at: int = at) -> None:
            with Faults(at, kills=True).injected():
                ss.pack_images(photos, folder, **OPTIONS, overwrite=True)

        assert in_child(pack) == KILLED, at
        found = files_of(folder)
        if ".streamshard/manifest.json" in found:
            datasets = ({name: found[name] for name in names} for names in (old, whole))
            assert any(files in (old, whole) for files in datasets)
        ss.pack_images(photos, folder, **OPTIONS, resume=True)
        assert files_of(folder) == whole, at
        shutil.rmtree(folder)


# Two at once.


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_of_two_packs_that_begin_together_one_is_refused(
    photos: Path, whole: dict[str, bytes], tmp_path: Path, rounds: int
) -> None:
    for number in range(rounds):
        folder = tmp_path / str(number)
        pids = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                try:
                    ss.pack_images(photos, folder, **OPTIONS)
                    os._exit(0)
                except (PackError, UsageError):
                    os._exit(1)
                finally:
                    os._exit(2)
            pids.append(pid)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert sorted(statuses) == [0, 1]
        assert files_of(folder) == whole


# A real full disk.


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a tmpfs")
def test_a_full_disk_is_an_error_in_a_line_and_the_pack_goes_on_when_there_is_room(
    photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    pack = " ".join(COMMAND) + f" pack images {photos} disk/own --shard-size 6KB"
    script = f"""
        mount -t tmpfs -o size=36k tmpfs disk || exit 99
        {pack} > out 2> err
        echo $? > status
        ls -A disk/own disk/own/.streamshard > listed
        mount -o remount,size=10M disk
        {pack} --resume > out2 2> err2
        echo $? > status2
        cp -a disk/own own
    """
    subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=tmp_path, env=environment(), check=True
    )
    err = (tmp_path / "err").read_text()
    assert (tmp_path / "status").read_text() == "1\n", err
    assert len(err.splitlines()) == 1
    assert "disk/own/" in err
    assert "No space left on device" in err
    assert "finished: --resume" in err
    assert ".tmp" not in (tmp_path / "listed").read_text()
    assert "manifest.json" not in (tmp_path / "listed").read_text()
    err = (tmp_path / "err2").read_text()
    assert (tmp_path / "status2").read_text() == "0\n", err
    assert "inputs done; going on" in err
    assert files_of(tmp_path / "own") == whole


def test_errors_of_a_disk_name_the_file_and_the_remedy(photos: Path, tmp_path: Path) -> None:
    with (
        Faults(60, kills=False).injected(),
        pytest.raises(
            StoreError,
            match=r"own/\S+: No space left on device; \d+ shards? (is|are) finished: --resume",
        ),
    ):
        ss.pack_images(photos, tmp_path / "own", **OPTIONS)
