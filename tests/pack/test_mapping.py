from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import streamshard as ss
from streamshard.errors import PackError, SampleError, UsageError
from tests.pack import hooks
from tests.pack.sources import (
    class_folders,
    files_of,
    image_bytes,
    read_by_streamshard,
    ring,
    write_files,
    write_tar,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "src", ["ant", "bee"], each=4)


def packed(photos: Path, name: str, **options: Any) -> dict[str, dict[str, bytes]]:
    options = {"shuffle": False, **options}
    ss.pack_images(photos, photos.parent / name, **options)
    return dict(read_by_streamshard(str(photos.parent / name)))


def test_a_function_changes_samples(photos: Path) -> None:
    found = packed(photos, "dst", map=hooks.with_size, workers=0)
    assert len(found) == 8
    for parts in found.values():
        assert parts["json"] == b'{"bytes":%d}' % len(parts["png"])


def test_values_are_encoded_by_the_suffix_and_a_missing_key_is_the_input_s(photos: Path) -> None:
    assert packed(photos, "keys", map=hooks.without_key, workers=0)["bee/2"] == {"cls": b"1"}
    packed(photos, "npy", map=hooks.pixels, workers=0)
    assert ss.open(str(photos.parent / "npy"))[7]["npy"].tolist() == [[1, 1], [1, 1]]


def test_none_drops_an_input_and_the_summary_counts_them(photos: Path) -> None:
    dst = photos.parent / "dst"
    told: list[tuple[int, int | None]] = []
    summary = ss.pack_images(
        *(photos, dst), map=hooks.odd_only, workers=0, progress=lambda *of: told.append(of[:2])
    )
    assert summary.samples == 4
    assert summary.notes == ["4 inputs were dropped by --map"]
    assert told[-1] == (8, 8)
    assert {key for key, _ in read_by_streamshard(str(dst))} == {"ant/1", "ant/3", "bee/1", "bee/3"}


def test_a_list_gets_numbered_keys_unless_the_function_gives_them(photos: Path) -> None:
    found = packed(photos, "twice", map=hooks.twice, workers=0)
    assert list(found)[:4] == ["ant/0-0", "ant/0-1", "ant/1-0", "ant/1-1"]
    assert found["bee/3-1"]["cls"] == b"11"
    own = packed(photos, "own", map=hooks.by_own_keys, workers=0)
    assert list(own)[:3] == ["ant/0/left", "ant/0/right", "ant/1/left"]


def test_an_error_of_the_function_names_the_input_and_the_line(photos: Path) -> None:
    line = r"ant/3\.png: --map: RuntimeError: three.*\(hooks\.py:\d+\)"
    with pytest.raises(SampleError, match=f"(?s){line}"):
        packed(photos, "dst", map=hooks.fail_on_three, workers=0)
    dst = photos.parent / "skip"
    summary = ss.pack_images(photos, dst, map=hooks.fail_on_three, on_error="skip", workers=1)
    assert (summary.samples, len(summary.skipped)) == (6, 2)


def test_what_is_no_sample_is_refused_and_nothing_at_all_too(photos: Path) -> None:
    with pytest.raises(SampleError, match=r"ant/0\.png: --map gave a int; a sample"):
        packed(photos, "dst", map=hooks.a_number, workers=0)
    with pytest.raises(PackError, match="no sample was written"):
        packed(photos, "none", map=hooks.nothing, workers=0)


def test_a_function_is_found_by_name_also_in_a_file(photos: Path, tmp_path: Path) -> None:
    write_files(
        tmp_path, {"own.py": b"def drop_bees(s):\n    return s if s['cls'] == 0 else None\n"}
    )
    for workers in (0, 1):
        found = packed(
            photos, f"{workers}", map=f"{tmp_path}/own.py:drop_bees", workers=workers,
            start_method="forkserver",
        )  # fmt: skip
        assert [key[:3] for key in found] == ["ant"] * 4
    by_module = packed(photos, "module", map="tests.pack.hooks:twice", workers=0)
    assert by_module == packed(photos, "function", map=hooks.twice, workers=0)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("hooks", "is no function; --map takes module:function"),
        ("nowhere_at_all:function", "no module named 'nowhere_at_all'"),
        ("tests.pack.hooks:nothing_there", "there is no callable 'nothing_there'"),
        ("gone.py:function", "gone.py: no such file"),
    ],
)
def test_a_function_that_is_not_there_is_refused_before_anything_is_written(
    photos: Path, spec: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        packed(photos, "dst", map=spec)
    assert files_of(photos.parent / "dst") == {}


def test_it_runs_in_the_workers_and_the_bytes_do_not_depend_on_them(photos: Path) -> None:
    pids = {parts["txt"] for parts in packed(photos, "pids", map=hooks.where, workers=1).values()}
    assert b"%d" % os.getpid() not in pids
    datasets = []
    for workers in (0, 1, 2):
        packed(photos, f"{workers}", map=hooks.twice, workers=workers, shuffle=True)
        datasets.append(files_of(photos.parent / f"{workers}"))
    assert datasets[0] == datasets[1] == datasets[2]


def test_a_function_inside_another_runs_in_this_process_and_that_is_told(photos: Path) -> None:
    seen = []
    summary = ss.pack_images(photos, photos.parent / "dst", map=lambda s: seen.append(1) or s)  # type: ignore[func-returns-value]
    assert len(seen) == summary.samples == 8
    assert summary.notes == [
        "map= ran in this process: workers know only functions at the top of a module"
    ]


def test_what_one_input_becomes_stays_in_one_split(photos: Path) -> None:
    options: dict[str, Any] = {"map": hooks.twice, "workers": 0}
    ss.pack_images(photos, photos.parent / "dst", split={"a": 0.5, "b": 0.5}, **options)
    a, b = (
        {key for key, _ in read_by_streamshard(str(photos.parent / "dst" / name))} for name in "ab"
    )
    assert len(a) + len(b) == 16
    assert not {key[:-2] for key in a} & {key[:-2] for key in b}


def test_tables_tars_and_graphs_are_mapped_too(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/3.png": image_bytes(), "t.csv": b"path,cls\na/3.png,5\n"})
    ss.pack_table(
        tmp_path / "t.csv", tmp_path / "table", image="path", label="cls", map=hooks.twice
    )
    assert [key for key, _ in read_by_streamshard(str(tmp_path / "table"))] == ["a/3-0", "a/3-1"]
    with pytest.raises(SampleError, match=r"t\.csv:2: --map: RuntimeError"):
        ss.pack_table(tmp_path / "t.csv", tmp_path / "no", image="path", map=hooks.fail_on_three)
    write_tar(tmp_path / "t.tar", [("1.txt", b"x"), ("2.txt", b"y"), ("3.txt", b"z")])
    ss.pack_tars(tmp_path / "t.tar", tmp_path / "tars", map=hooks.odd_only, shuffle=False)
    assert [key for key, _ in read_by_streamshard(str(tmp_path / "tars"))] == ["1", "3"]
    with pytest.raises(SampleError, match=r"t\.tar: --map: RuntimeError"):
        ss.pack_tars(tmp_path / "t.tar", tmp_path / "not", map=hooks.fail_on_three)
    given = [ring(3), ring(4)]
    before = [graph.x.clone() for graph in given]
    ss.pack_graphs(given, tmp_path / "graphs", map=hooks.larger, shuffle=False)
    shards = ss.open(str(tmp_path / "graphs"))
    assert all(shards[n]["graph"].x.equal(before[n] + 1) for n in range(2))
    assert all(given[n].x.equal(before[n]) for n in range(2)), "the list is as it was"
    with pytest.raises(SampleError, match=r"key 000003: --map: RuntimeError"):
        ss.pack_graphs([ring(n) for n in range(3, 9)], tmp_path / "n", map=hooks.fail_on_three)
