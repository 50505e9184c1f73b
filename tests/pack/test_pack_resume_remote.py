"""Tables and tars that lie elsewhere, packed to elsewhere: a pack that ended goes on."""

from __future__ import annotations

import gzip
import io
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

import streamshard as ss
from streamshard.errors import PackError
from streamshard.store.filesystem import open_store
from tests.pack.sources import files_of, image_bytes, write_tar
from tests.pack.test_pack_resume import remote_files, stopped

NAMES = [f"{number}.png" for number in range(18)]
PICTURES = {name: image_bytes(seed=number) for number, name in enumerate(NAMES)}
KINDS = ["csv", "csv.gz", "parquet", "tar", "tar.gz"]


@pytest.fixture
def memory() -> Iterator[str]:
    yield f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").store.clear()


def put(url: str, files: Mapping[str, bytes]) -> None:
    store = open_store(url)
    for name, data in files.items():
        with store.create(name) as file:
            file.write(data)


def table(kind: str, names: list[str]) -> bytes:
    if kind == "parquet":
        file = io.BytesIO()
        columns = {"path": names, "row": [*range(len(names))]}
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
        return file.getvalue()
    text = "path,row\n" + "".join(f"{name},{row}\n" for row, name in enumerate(names))
    return gzip.compress(text.encode()) if kind == "csv.gz" else text.encode()


def tar(kind: str, names: list[str], scratch: Path) -> bytes:
    data = write_tar(scratch / "t.tar", [(name, PICTURES[name]) for name in names]).read_bytes()
    return gzip.compress(data) if kind == "tar.gz" else data


def put_source(kind: str, url: str, scratch: Path) -> None:
    files = {**PICTURES, f"table.{kind}": table(kind, NAMES)}
    if kind.startswith("tar"):
        files = {
            f"t-{begin:02d}.{kind}": tar(kind, NAMES[begin : begin + 3], scratch)
            for begin in range(0, 18, 3)
        }
    put(url, files)


def pack(kind: str, url: str, destination: Any, **options: Any) -> Any:
    if kind.startswith("tar"):
        return ss.pack_tars(f"{url}/*.{kind}", destination, shard_size=4_000, **options)
    return ss.pack_table(
        f"{url}/table.{kind}", destination, image="path", shard_size=4_000, **options
    )


def assert_it_goes_on(kind: str, place: str, scratch: Path, *, stops: Sequence[int]) -> None:
    """A pack between two remote places, stopped after some inputs, ends as one that was not."""
    put_source(kind, f"{place}/source", scratch)

    def run(destination: Any, **options: Any) -> Any:
        return pack(kind, f"{place}/source", destination, **options)

    whole = run(scratch / "whole")
    assert whole.shards > 2
    assert whole.samples == 18
    for inputs in stops:
        stopped(run, f"{place}/own", inputs, resume=True)
    run(f"{place}/own", resume=True)
    assert remote_files(f"{place}/own") == files_of(scratch / "whole")
    assert run(f"{place}/own", resume=True).notes == ["finished already: nothing was done"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_between_two_remote_places_goes_on_to_the_same_bytes(
    tmp_path: Path, memory: str, kind: str
) -> None:
    assert_it_goes_on(kind, memory, tmp_path, stops=(1, 8, 17))


@pytest.mark.parametrize(
    "kind",
    ["tar", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "tar")],
)
def test_between_two_places_in_s3_too(tmp_path: Path, s3_url: str, kind: str) -> None:
    assert_it_goes_on(kind, s3_url, tmp_path, stops=[11])


@pytest.mark.parametrize("kind", KINDS)
def test_a_remote_source_that_is_another_one_is_told(
    tmp_path: Path, memory: str, kind: str
) -> None:
    put_source(kind, memory, tmp_path)

    def run(destination: Any, **options: Any) -> Any:
        return pack(kind, memory, destination, **options)

    stopped(run, tmp_path / "own", 12)
    before = files_of(tmp_path / "own")
    if kind.startswith("tar"):
        put(memory, {f"t-99.{kind}": tar(kind, NAMES[:1], tmp_path)})
        said = r"t-99\.\S+ is new"
    else:
        put(memory, {f"table.{kind}": table(kind, [*NAMES, "0.png"])})
        said = rf"table\.{kind} has changed"
    with pytest.raises(PackError, match=said):
        run(tmp_path / "own", resume=True)
    assert files_of(tmp_path / "own") == before


def test_a_remote_source_that_vanished_is_named(tmp_path: Path, memory: str) -> None:
    put_source("tar", memory, tmp_path)

    def run(destination: Any, **options: Any) -> Any:
        return pack("tar", memory, destination, **options)

    stopped(run, tmp_path / "own", 12)
    open_store(memory).remove("t-03.tar")
    with pytest.raises(PackError, match=r"t-03\.tar has vanished"):
        run(tmp_path / "own", resume=True)
