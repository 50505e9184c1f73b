"""A pack that ended on the way goes on, and gives the bytes of one that did not."""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch_geometric.data import Data, HeteroData

import streamshard as ss
from streamshard.errors import DatasetError, PackError, SampleError, StoreError, UsageError
from streamshard.pack.journal import Journal, read_lines
from streamshard.pack.lock import LOCK
from streamshard.store.filesystem import open_store
from tests.cli.command import environment
from tests.pack import hooks
from tests.pack.sources import (
    class_folders,
    files_of,
    image_bytes,
    ring,
    write_files,
    write_tar,
)

Pack = Callable[..., Any]


class Stopped(Exception):
    """Ends a pack on the way."""


def stop_at(inputs: int) -> Callable[[int, int | None, int], None]:
    def progress(samples: int, total: int | None, nbytes: int) -> None:
        if samples == inputs:
            raise Stopped

    return progress


def stopped(pack: Pack, destination: Any, inputs: int, **options: Any) -> None:
    """A pack that ended with an error after some inputs."""
    with pytest.raises(Stopped):
        pack(destination, progress=stop_at(inputs), **options)


def killed(folder: Path, *, journal: bool = True) -> None:
    """What a SIGKILL leaves besides: the lock, and the beginning of a shard."""
    (folder / ".streamshard").mkdir(parents=True, exist_ok=True)
    write_files(
        folder,
        {
            ".streamshard/pack.lock": b"",
            ".shard-000099.tar.123.tmp": b"half",
            ".streamshard/.shard-000099.index.safetensors.123.tmp": b"half",
            ".streamshard/.manifest.json.123.tmp": b"half",
            "shard-000099.tar": b"without a line",
        },
    )


def hetero(count: int) -> HeteroData:
    graph = HeteroData()
    graph["paper"].x = torch.full((count, 2), float(count))
    graph["author"].x = torch.ones(2, 1)
    graph["author", "writes", "paper"].edge_index = torch.tensor([[0, 1], [0, count - 1]])
    return graph


@pytest.fixture
def images(tmp_path: Path) -> Pack:
    source = class_folders(tmp_path / "photos", each=6)

    def pack(destination: Any, **options: Any) -> Any:
        return ss.pack_images(
            source, destination, **{"shard_size": 6_000, "on_error": "skip", **options}
        )

    return pack


def graphs_of(kind: str, folder: Path) -> Any:
    graphs: Sequence[Any] = [ring(2 + n % 5, y=torch.tensor([n])) for n in range(18)]
    if kind == "hetero":
        return [hetero(2 + n % 4) for n in range(18)]
    if kind == "pt":
        folder.mkdir()
        for number in range(9):
            torch.save(list(graphs[2 * number : 2 * number + 2]), folder / f"{number}.pt")
        return folder
    if kind == "jsonl":
        folder.mkdir()
        lines = [
            f'{{"x": [[{n}.5], [1]], "edge_index": [[0], [1]], "name": "{n}"}}\n' for n in range(18)
        ]
        (folder / "a.jsonl").write_text("".join(lines))
        return folder / "a.jsonl"
    return graphs


@pytest.fixture(params=["images", "npy", "list", "generator", "hetero", "pt", "jsonl"])
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Pack:
    """Packs of every kind of source, 18 inputs in several shards."""
    if request.param in ("images", "npy"):
        images: Pack = request.getfixturevalue("images")
        more = {"format": "npy", "resize": 6} if request.param == "npy" else {}
        return lambda *given, **options: images(*given, **{**more, **options})
    source = graphs_of(request.param, tmp_path / "graphs")

    def run(destination: Any, **options: Any) -> Any:
        given = iter(source) if request.param == "generator" else source
        return ss.pack_graphs(given, destination, **{"shard_size": 5_000, "workers": 0, **options})

    return run


def test_a_pack_that_ended_anywhere_goes_on_to_the_same_bytes(tmp_path: Path, pack: Pack) -> None:
    whole = pack(tmp_path / "whole")
    assert whole.shards > 2
    for inputs in range(1, 19):
        folder = tmp_path / f"own{inputs}"
        stopped(pack, folder, inputs)
        summary = pack(folder, resume=True)
        assert files_of(folder) == files_of(tmp_path / "whole")
        assert (summary.samples, summary.shards, summary.bytes, summary.skipped) == (
            *(whole.samples, whole.shards, whole.bytes, whole.skipped),
        )
        assert summary.fingerprint == whole.fingerprint


def test_what_a_kill_leaves_is_cleaned_up(tmp_path: Path, images: Pack) -> None:
    images(tmp_path / "whole")
    for inputs in (1, 12):  # with nothing finished, and with some shards
        stopped(images, tmp_path / "own", inputs)
        killed(tmp_path / "own")
        with pytest.raises(DatasetError, match=r"not finished.*--resume or --overwrite"):
            ss.open(str(tmp_path / "own"))
        with pytest.raises(UsageError, match=r"not finished; --resume .*--overwrite"):
            images(tmp_path / "own")
        images(tmp_path / "own", resume=True)
        assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")
        killed(tmp_path / "own")
        images(tmp_path / "own", overwrite=True)
        assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")
        shutil.rmtree(tmp_path / "own")


def test_a_chain_of_ends_changes_nothing(tmp_path: Path, pack: Pack) -> None:
    pack(tmp_path / "whole")
    for inputs in range(1, 19):
        stopped(pack, tmp_path / "own", inputs, resume=True)
    pack(tmp_path / "own", resume=True)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")


def test_finished_shards_are_not_written_again(tmp_path: Path, images: Pack) -> None:
    stopped(images, tmp_path / "own", 12)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "own").glob("*.tar")}
    assert len(before) > 1
    images(tmp_path / "own", resume=True)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "own").glob("*.tar")}
    assert before.items() <= after.items()


@pytest.mark.parametrize("name", ["shard-000001.tar", ".streamshard/shard-000001.index.safetensors",
                                  ".streamshard/shard-000001.journal.json"])  # fmt: skip
@pytest.mark.parametrize("damage", [b"", b"changed", None])
def test_a_finished_shard_that_is_not_whole_any_more_is_packed_again(
    tmp_path: Path, images: Pack, name: str, damage: bytes | None
) -> None:
    images(tmp_path / "whole")
    stopped(images, tmp_path / "own", 15)
    path = tmp_path / "own" / name
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    images(tmp_path / "own", resume=True)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")


def test_skipped_inputs_are_counted_over_all_parts_of_a_pack(tmp_path: Path, images: Pack) -> None:
    write_files(tmp_path / "photos", {f"bee/{n}0.png": b"no image" for n in range(5)})
    whole = images(tmp_path / "whole")
    assert len(whole.skipped) == 5
    for inputs in range(1, 24, 3):
        stopped(images, tmp_path / "own", inputs, resume=True)
    summary = images(tmp_path / "own", resume=True)
    assert (summary.samples, summary.skipped) == (whole.samples, whole.skipped)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")


def test_what_was_bad_is_mended_and_the_pack_goes_on(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "photos", each=6)
    good = (source / "cat/3.png").read_bytes()
    (source / "cat/3.png").write_bytes(b"no image")
    with pytest.raises(SampleError, match=r"cat/3\.png.*shards are finished: --resume"):
        ss.pack_images(source, tmp_path / "own", shard_size=6_000, shuffle=False)
    ss.pack_images(  # what is finished holds no bad one, so either way is as if from the beginning
        source, tmp_path / "skip", shard_size=6_000, shuffle=False, on_error="skip"
    )
    shutil.copytree(tmp_path / "own", tmp_path / "own2")
    ss.pack_images(
        source, tmp_path / "own2", shard_size=6_000, shuffle=False, on_error="skip", resume=True
    )
    assert files_of(tmp_path / "own2") == files_of(tmp_path / "skip")
    (source / "cat/3.png").write_bytes(good)
    ss.pack_images(source, tmp_path / "own", shard_size=6_000, shuffle=False, resume=True)
    ss.pack_images(source, tmp_path / "whole", shard_size=6_000, shuffle=False)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")


def test_resume_is_fine_on_nothing_and_on_a_finished_pack(tmp_path: Path, images: Pack) -> None:
    first = images(tmp_path / "own", resume=True)
    before = files_of(tmp_path / "own")
    again = images(tmp_path / "own", resume=True)
    assert (again.samples, again.shards, again.bytes, again.fingerprint) == (
        *(first.samples, first.shards, first.bytes, first.fingerprint),
    )
    assert again.notes == ["finished already: nothing was done"]
    (tmp_path / "own" / ".streamshard" / "pack.lock").touch()  # killed before its very end
    (tmp_path / "own" / ".streamshard" / "journal.json").write_text("{}")
    images(tmp_path / "own", resume=True)
    assert files_of(tmp_path / "own") == before


@pytest.mark.parametrize("name", ["notes.txt", "shard-000000.tar", ".streamshard/notes.txt"])
def test_resume_touches_nothing_that_no_pack_began(tmp_path: Path, images: Pack, name: str) -> None:
    write_files(tmp_path / "own", {name: b"mine"})
    with pytest.raises(UsageError, match=r"own holds .*, and no pack that was begun"):
        images(tmp_path / "own", resume=True)
    assert files_of(tmp_path / "own") == {name: b"mine"}


def test_resume_and_overwrite_are_one_or_the_other(tmp_path: Path, images: Pack) -> None:
    with pytest.raises(UsageError, match="one of them"):
        images(tmp_path / "own", resume=True, overwrite=True)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shard_size": 7_000}, "has shard_size 6000, this one 7000"),
        ({"quality": 80}, "has quality 90, this one 80"),
        ({"format": "jpg"}, "has format none, this one jpg"),
        ({"resize": 4}, "has resize none, this one 4"),
        ({"seed": 1}, "has seed 0, this one 1"),
        ({"shuffle": False}, "has seed 0, this one none"),
        ({"keys": "number"}, "has keys path, this one number"),
    ],
)
def test_other_options_are_refused_and_both_are_shown(
    tmp_path: Path, images: Pack, options: dict[str, Any], said: str
) -> None:
    stopped(images, tmp_path / "own", 12)
    before = files_of(tmp_path / "own")
    with pytest.raises(PackError, match=f"{said}; --overwrite"):
        images(tmp_path / "own", resume=True, **options)
    assert files_of(tmp_path / "own") == before


def test_another_source_is_refused_and_both_are_shown(tmp_path: Path, images: Pack) -> None:
    stopped(images, tmp_path / "own", 12)
    other = class_folders(tmp_path / "others", each=6)
    with pytest.raises(PackError, match=r"has source \S+/photos, this one \S+/others;"):
        ss.pack_images(other, tmp_path / "own", shard_size=6_000, resume=True)


def test_a_file_that_vanished_came_or_changed_is_named(tmp_path: Path, images: Pack) -> None:
    stopped(images, tmp_path / "own", 17)
    line = list(read_lines(open_store(tmp_path / "own")))[-1]
    assert line.inputs < 18
    before = files_of(tmp_path / "own")
    photos = tmp_path / "photos"
    (photos / "ant/1.png").rename(photos / "ant/7.png")
    with pytest.raises(PackError, match=r"ant/1\.png has vanished, ant/7\.png is new;"):
        images(tmp_path / "own", resume=True)
    (photos / "ant/7.png").rename(photos / "ant/1.png")
    for path in sorted(photos.rglob("*.png")):
        path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(PackError, match=r"\.png has changed \(\d+ bytes then, \d+ now\) \(and"):
        images(tmp_path / "own", resume=True)
    assert files_of(tmp_path / "own") == before


def test_one_file_fewer_is_named(tmp_path: Path, images: Pack) -> None:
    stopped(images, tmp_path / "own", 12)
    (tmp_path / "photos/bee/2.png").unlink()
    with pytest.raises(PackError, match=r"bee/2\.png has vanished"):
        images(tmp_path / "own", resume=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_changes_or_vanishes_on_the_way_is_named(tmp_path: Path, workers: int) -> None:
    source = class_folders(tmp_path / "photos", each=40)

    def disturb(samples: int, total: int | None, nbytes: int) -> None:
        if samples == 1:
            (source / "cat/39.png").write_bytes(image_bytes(seed=1, size=(30, 30)))
            (source / "cat/38.png").unlink()

    summary = ss.pack_images(
        source, tmp_path / "own", shuffle=False, on_error="skip", workers=workers, progress=disturb
    )
    assert summary.samples == 118
    assert [reason.partition("cat/")[2] for reason in summary.skipped] == [
        "38.png: No such file or directory",
        summary.skipped[1].partition("cat/")[2],
    ]
    assert "39.png: changed while it was packed" in summary.skipped[1]


def test_rows_of_a_file_that_changes_on_the_way_are_named(tmp_path: Path) -> None:
    source = graphs_of("jsonl", tmp_path / "graphs")

    def disturb(samples: int, total: int | None, nbytes: int) -> None:
        if samples == 3:
            source.write_text(source.read_text() + "\n")

    with pytest.raises(SampleError, match=r"a\.jsonl:4: changed while it was packed"):
        ss.pack_graphs(source, tmp_path / "own", shuffle=False, workers=0, progress=disturb)


def test_a_pt_file_that_changes_on_the_way_is_named(tmp_path: Path) -> None:
    source = graphs_of("pt", tmp_path / "graphs")

    def disturb(samples: int, total: int | None, nbytes: int) -> None:
        if samples == 3:
            torch.save([ring(4), ring(5)], source / "5.pt")

    with pytest.raises(SampleError, match=r"5\.pt, graph 0: changed while it was packed"):
        ss.pack_graphs(source, tmp_path / "own", shuffle=False, workers=0, progress=disturb)


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_other_graphs_in_memory_are_found_by_the_last_one(tmp_path: Path, kind: str) -> None:
    def graphs(shift: int) -> Any:
        graphs = [ring(2 + n % 5, y=torch.tensor([n + shift])) for n in range(18)]
        return graphs if kind == "list" else iter(graphs)

    options: dict[str, Any] = {"shard_size": 5_000, "shuffle": False}
    with pytest.raises(Stopped):
        ss.pack_graphs(graphs(0), tmp_path / "own", progress=stop_at(12), **options)
    before = files_of(tmp_path / "own")
    with pytest.raises(PackError, match=r"input \d+ of the source is not what is in the last"):
        ss.pack_graphs(graphs(1), tmp_path / "own", resume=True, **options)
    with pytest.raises(PackError, match=r"input \d+ of the source|inputs"):
        ss.pack_graphs(graphs(0)[:3] if kind == "list" else iter([]), tmp_path / "own",
                       resume=True, **options)  # fmt: skip
    assert files_of(tmp_path / "own") == before


def test_the_arguments_of_a_callable_are_compared_and_not_shown(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_size": 2_000}
    spec = "tests.pack.test_pack_resume:rings"
    with pytest.raises(Stopped):
        ss.pack_graphs(
            spec, tmp_path / "own", args={"token": "hunter2"}, progress=stop_at(9), **options
        )
    assert not any(b"hunter2" in data for data in files_of(tmp_path / "own").values())
    with pytest.raises(PackError, match="has args") as caught:
        ss.pack_graphs(spec, tmp_path / "own", args={"token": "hunter3"}, resume=True, **options)
    assert "hunter" not in str(caught.value)
    ss.pack_graphs(spec, tmp_path / "own", args={"token": "hunter2"}, resume=True, **options)


def rings(token: str) -> list[Data]:
    return [ring(2 + n % 5) for n in range(12)]


def test_a_writer_says_how_many_samples_it_goes_on_behind(tmp_path: Path) -> None:
    samples = [{"__key__": f"{n:03d}", "txt": "x" * n} for n in range(30)]
    with ss.ShardWriter(tmp_path / "whole", shard_size=9_000) as writer:
        for sample in samples:
            writer.write(sample)
    writer = ss.ShardWriter(tmp_path / "own", shard_size=9_000)
    for sample in samples[:20]:
        writer.write(sample)
    writer.__exit__(Stopped, None, None)
    with ss.ShardWriter(tmp_path / "own", shard_size=9_000, resume=True) as writer:
        assert 0 < writer.samples < 20
        with pytest.raises(SampleError, match="'000' is there twice"):
            writer.write(samples[0])
        for sample in itertools.islice(samples, writer.samples, None):
            writer.write(sample)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")
    finished = ss.ShardWriter(tmp_path / "own", resume=True)
    assert finished.samples == 30
    with pytest.raises(UsageError, match="closed"):
        finished.write(samples[0])


def test_the_pack_of_a_source_is_not_gone_on_with_by_a_bare_writer(
    tmp_path: Path, images: Pack
) -> None:
    stopped(images, tmp_path / "own", 12)
    with pytest.raises(PackError, match="has classes"):
        assert ss.ShardWriter(tmp_path / "own", shard_size=6_000, resume=True).samples


# Remote destinations.


@pytest.fixture(params=["memory", "local"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if request.param == "memory":
        yield f"memory://{uuid.uuid4().hex}/own", {}
        fsspec.filesystem("memory").store.clear()
    else:
        yield f"local://{tmp_path}/remote/own", {"auto_mkdir": True}


def remote_files(url: str) -> dict[str, bytes]:
    fs, root = fsspec.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in fs.find(root)}


def test_a_remote_pack_goes_on_too(
    tmp_path: Path, images: Pack, remote: tuple[str, dict[str, Any]]
) -> None:
    url, options = remote
    images(tmp_path / "whole")
    for inputs in (1, 7, 12, 18):
        stopped(images, url, inputs, resume=True, storage_options=options)
    with pytest.raises(UsageError, match="not finished; --resume"):
        images(url, storage_options=options)
    images(url, resume=True, storage_options=options)
    assert remote_files(url) == files_of(tmp_path / "whole")
    assert images(url, resume=True, storage_options=options).notes


def test_a_remote_lock_that_a_killed_pack_left_is_taken_over_with_resume(
    tmp_path: Path, images: Pack, remote: tuple[str, dict[str, Any]]
) -> None:
    url, options = remote
    images(tmp_path / "whole")
    stopped(images, url, 12, storage_options=options)
    with open_store(url, options).create(LOCK) as file:
        file.write(b'{"pid": 4, "host": "elsewhere", "started": 1, "nonce": "0"}')
    with pytest.raises(PackError, match=r"process 4 on elsewhere.*--resume"):
        images(url, storage_options=options)
    images(url, resume=True, storage_options=options)
    assert remote_files(url) == files_of(tmp_path / "whole")


def test_a_remote_pack_that_was_taken_over_ends(
    images: Pack, remote: tuple[str, dict[str, Any]]
) -> None:
    url, options = remote

    def take_over(samples: int, total: int | None, nbytes: int) -> None:
        if samples == 12:
            with open_store(url, options).create(LOCK) as file:
                file.write(b'{"pid": 4, "host": "elsewhere", "nonce": "other"}')

    with pytest.raises(PackError, match=r"process 4 on elsewhere\) and took over"):
        images(url, storage_options=options, progress=take_over)
    assert LOCK in remote_files(url)
    assert ".streamshard/manifest.json" not in remote_files(url)


@pytest.mark.parametrize("place", ["folder", "remote"])
@pytest.mark.parametrize("option", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_pack_into_one_folder_is_refused_by_name(
    tmp_path: Path, images: Pack, place: str, option: dict[str, bool]
) -> None:
    destination = str(tmp_path / "own") if place == "folder" else f"memory://{uuid.uuid4().hex}"
    refused: list[PackError] = []

    def second(samples: int, total: int | None, nbytes: int) -> None:
        if samples in (1, 12):
            with pytest.raises(
                PackError, match=f"another pack writes.*process {os.getpid()} on"
            ) as it:
                images(destination, **option)
            refused.append(it.value)

    summary = images(destination, progress=second)
    assert len(refused) == 2
    assert summary.samples == len(ss.open(destination)) == 18
    images(tmp_path / "whole")
    assert remote_files(destination) == files_of(tmp_path / "whole")


def test_a_writer_that_was_let_go_leaves_no_lock(tmp_path: Path) -> None:
    writer = ss.ShardWriter(tmp_path / "own")
    assert files_of(tmp_path) != {}
    del writer
    assert not (tmp_path / "own").exists()


def test_a_writer_that_nobody_closed_leaves_no_lock_and_is_quiet(tmp_path: Path) -> None:
    script = f"import streamshard as ss; writer = ss.ShardWriter({str(tmp_path / 'own')!r})"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    assert not (tmp_path / "own").exists()


def test_a_full_store_ends_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ss.ShardWriter(tmp_path / "own")
    writer.write({"__key__": "a", "txt": "a"})
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StoreError, match=r"shard-000000\.tar: No space left"):
        writer.close()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="ended by an error"):
        writer.write({"__key__": "b", "txt": "b"})
    assert files_of(tmp_path) == {}


def stops_at_every_shard(
    pack: Pack, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Any:
    """A pack that is stopped when each of its shards is finished, and goes on."""
    finish = ss.ShardWriter._finish_shard

    def finish_and_stop(self: ss.ShardWriter) -> None:
        finish(self)
        raise Stopped

    while True:
        with monkeypatch.context() as patched:
            patched.setattr(ss.ShardWriter, "_finish_shard", finish_and_stop)
            finished = len(list(read_lines(open_store(str(folder)))))
            try:
                return pack(folder, resume=True, **options)
            except Stopped:
                assert len(list(read_lines(open_store(str(folder))))) == finished + 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("hook", ["three", "three_or_none", "three_one_bad"])
def test_samples_of_one_input_may_lie_in_several_shards(
    tmp_path: Path, images: Pack, monkeypatch: pytest.MonkeyPatch, hook: str, workers: int
) -> None:
    options = {"map": f"tests.pack.hooks:{hook}", "shard_size": 3_500, "workers": workers}
    whole = images(tmp_path / "whole", **options)
    partial = set()
    read = Journal.take_over

    def take_over(self: Journal, lines: Any) -> None:
        read(self, lines)
        partial.add(self.within)

    monkeypatch.setattr(Journal, "take_over", take_over)
    summary = stops_at_every_shard(images, tmp_path / "own", monkeypatch, **options)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")
    assert partial >= {0, 2}
    for told in (summary, whole):
        told.seconds = 0.0
    assert summary == whole


def test_one_input_may_fill_several_shards(
    tmp_path: Path, images: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"map": "tests.pack.hooks:three", "shard_size": 1}
    whole = images(tmp_path / "whole", **options)
    assert whole.shards == 3 * 18
    stops_at_every_shard(images, tmp_path / "own", monkeypatch, **options)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")


def test_another_function_is_refused_by_its_name(tmp_path: Path, images: Pack) -> None:
    stopped(images, tmp_path / "own", 12, map=hooks.three)
    with pytest.raises(PackError, match=r"has map tests\.pack\.hooks\.three, this one .*\.twice"):
        images(tmp_path / "own", resume=True, map=hooks.twice)
    with pytest.raises(PackError, match=r"this one none"):
        images(tmp_path / "own", resume=True)


def test_a_split_is_not_gone_on_with(tmp_path: Path, images: Pack) -> None:
    with pytest.raises(UsageError, match="resume and split do not go together"):
        images(tmp_path / "own", split={"a": 0.5, "b": 0.5}, resume=True)
    assert not (tmp_path / "own").exists()


def test_a_split_that_fails_holds_none_of_the_others(tmp_path: Path, images: Pack) -> None:
    with pytest.raises(SampleError, match="RuntimeError") as told:
        images(
            tmp_path / "own",
            split={"a": 0.5, "b": 0.5},
            map="tests.pack.hooks:fail_on_three",
            on_error="raise",
            shard_size=1,
        )
    assert "resume" not in str(told.value)
    assert not list((tmp_path / "own").rglob("pack.lock"))


def test_chosen_graphs_in_files_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    for number in range(20):
        torch.save(ring(3 + number % 4), folder / f"{number:02d}.pt")

    def pack(destination: Any, **options: Any) -> Any:
        return ss.pack_graphs(
            folder, destination, exclude=["*3", "*7"], shard_size=4_000, workers=0, **options
        )

    pack(tmp_path / "whole")
    stopped(pack, tmp_path / "own", 10)
    (line, *_) = list(read_lines(open_store(str(tmp_path / "own"))))[::-1]
    assert 0 < line.inputs < 16
    with pytest.raises(PackError, match="this one"):
        ss.pack_graphs(folder, tmp_path / "own", shard_size=4_000, resume=True, workers=0)
    pack(tmp_path / "own", resume=True)
    assert files_of(tmp_path / "own") == files_of(tmp_path / "whole")
    stopped(pack, tmp_path / "other", 10)
    torch.save(ring(9), folder / "20.pt")
    with pytest.raises(PackError, match=r"20\.pt is new"):
        pack(tmp_path / "other", resume=True)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tars"])
def test_tables_and_tars_go_on(tmp_path: Path, kind: str) -> None:
    names = [f"{number}.png" for number in range(18)]
    source = tmp_path / f"source.{kind}"
    pictures = {name: image_bytes(seed=number) for number, name in enumerate(names)}
    write_files(tmp_path, pictures)
    table = ("path\n" + "".join(f"{name}\n" for name in names)).encode()
    if kind == "tars":
        for begin in range(0, 18, 6):
            write_tar(source / f"t-{begin:02d}.tar", list(pictures.items())[begin : begin + 6])
    else:
        source.write_bytes(table if kind == "csv" else gzip.compress(table))

    def pack(destination: Any, **options: Any) -> Any:
        if kind == "tars":
            return ss.pack_tars(source, destination, shard_size=4_000, **options)
        return ss.pack_table(source, destination, image="path", shard_size=4_000, **options)

    assert pack(tmp_path / "whole").shards > 2
    for inputs in (1, 8, 17):
        stopped(pack, tmp_path / f"own{inputs}", inputs)
        pack(tmp_path / f"own{inputs}", resume=True)
        assert files_of(tmp_path / f"own{inputs}") == files_of(tmp_path / "whole")
    stopped(pack, tmp_path / "other", 12)
    if kind == "tars":
        write_tar(source / "t-99.tar", list(pictures.items())[:1])
    else:
        more = table + b"0.png\n"
        source.write_bytes(more if kind == "csv" else gzip.compress(more))
    with pytest.raises(PackError, match="the source is not what it was"):
        pack(tmp_path / "other", resume=True)
