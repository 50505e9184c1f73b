"""`streamshard plan`: lines for people, one JSON object, a picture, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import streamshard as ss
from streamshard.cli.plan import _percent
from tests.cli.command import Here, streamshard_command
from tests.pack.sources import class_folders, tars_of, write_tar
from tests.shard.datasets import Files, small

SIZE = ("--world-size", 2, "--workers", 2, "--batch-size", 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed dataset of 40 samples, and tars without an index."""
    root = tmp_path_factory.mktemp("place")
    class_folders(root / "photos", ["ant", "bee"], each=20)
    ss.pack_images(root / "photos", root / "packed", shard_size=10_000)
    write_tar(root / "foreign" / "x.tar", [(f"{number}.txt", b"x") for number in range(9)])
    return root


def planned(here: Here, place: Path, *arguments: Any) -> dict[str, Any]:
    done = here("plan", *arguments, "--json", cwd=place)
    assert (done.status, done.err) == (0, "")
    assert done.out.count("\n") == 1
    value = json.loads(done.out)
    assert isinstance(value, dict)
    return value


def test_json_has_every_figure_and_what_it_comes_from(place: Path, here: Here) -> None:
    value = planned(here, place, "packed", *SIZE, "--seed", 7, "--tail", "pad", "--epoch", 2)
    sizes = [path.stat().st_size for path in tars_of(place / "packed")]
    assert len(sizes) > 2
    plain = {name: one for name, one in value.items() if not isinstance(one, dict)}
    assert plain == {
        "samples": 40,
        "shards": len(sizes),
        "bytes": sum(sizes),
        "fingerprint": ss.open(str(place / "packed")).manifest.fingerprint,
        "world_size": 2,
        "workers": 2,
        "batch_size": 4,
        "tail": "pad",
        "epoch": 2,
        "seed": 7,
        "shuffle": True,
        "lanes": 1,
        "grain": 4,
        "window": 40,
        "steps": 5,
        "dropped": 0,
        "padded": 0,
        "in_flight": 2 * 2 * 4 * 4,
    }
    reads = value["reads"]
    assert (reads["exact"], reads["seen"], reads["of"]) == (True, len(sizes), len(sizes))
    assert reads["workers"]["readers"] == len(reads["workers"]["each"]) == 4
    assert reads["ranks"]["readers"] == len(reads["ranks"]["each"]) == 2
    assert set(value["mixing"]) == {
        *("distance", "neighbour_distance", "neighbours_in_step", "batch_shards", "step_shards")
    }
    for measure in [*value["mixing"].values(), value["classes"]]:
        assert measure["exact"] is True
        assert 0 < measure["here"] < 2 * measure["perfect"] + 1


def test_lines_tell_the_same_as_json(place: Path, here: Here) -> None:
    value = planned(here, place, "packed", *SIZE)
    done = streamshard_command("plan", "packed", *SIZE, cwd=place)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"packed: 40 samples in {value['shards']} shards, ")
    assert "steps      5 on every rank; tail drop: 0 samples dropped, 0 padded\n" in done.out
    assert "in flight  64 samples, 4 batches for each worker\n" in done.out
    for rank in range(2):
        for worker in range(2):
            assert f"rank {rank}, worker {worker}" in done.out
    assert f"{value['reads']['workers']['fetches']} times" in done.out
    assert f"{value['mixing']['distance']['here']:.3f}" in done.out
    classes = next(line for line in done.out.splitlines() if line.startswith("two of a batch"))
    assert _percent(value["classes"]["here"]) in classes
    assert f"exact, from all {value['shards']} shards\n" in done.out
    assert "estimated" not in done.out


def test_the_options_of_the_order_arrive(place: Path, here: Here) -> None:
    order = ("--lanes", 4, "--grain", 2, "--window", 5)
    value = planned(here, place, "packed", *SIZE, *order)
    assert (value["lanes"], value["grain"], value["window"]) == (4, 2, 5)
    for name, shuffle in (("none", False), ("full", "full"), ("windowed", True)):
        assert planned(here, place, "packed", *SIZE, "--shuffle", name)["shuffle"] == shuffle


def test_without_workers_a_batch_is_in_flight(place: Path, here: Here) -> None:
    value = planned(here, place, "packed", "--batch-size", 4)
    assert (value["world_size"], value["workers"], value["in_flight"]) == (1, 0, 4)
    assert value["reads"]["workers"]["readers"] == 1


def test_foreign_tars_are_planned_by_their_index(place: Path, tmp_path: Path, here: Here) -> None:
    ss.index_tars(place / "foreign", out=str(tmp_path / "index"))
    value = planned(here, place, "foreign", "--index", tmp_path / "index", "--batch-size", 2)
    assert (value["samples"], value["steps"], value["dropped"]) == (9, 4, 1)
    assert value["classes"] is None


def test_a_url_is_planned_like_a_folder(place: Path, here: Here) -> None:
    folder = planned(here, place, "packed", *SIZE)
    assert planned(here, place, f"file://{place}/packed", *SIZE) == folder
    names = ",".join(path.stem for path in tars_of(place / "packed"))
    assert planned(here, place, f"packed/{{{names}}}.tar", *SIZE) == folder


def test_an_estimate_is_called_one(tmp_path: Path, here: Here) -> None:
    manifest = small()
    samples = manifest.table.samples
    samples[:] = [5_000_000, 700_000]
    parts = {"jpg": manifest.parts["jpg"]}
    files = Files(type(manifest)(parts, manifest.table).to_files())
    (tmp_path / "large" / ".streamshard").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "large" / name).write_bytes(data)
    done = here("plan", "large", *SIZE, "--shuffle", "full", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert "estimated from 1 of 2 shards" in done.out
    assert "from 131072 of 5700000 samples" in done.out
    value = planned(here, tmp_path, "large", *SIZE, "--shuffle", "full")
    assert value["reads"]["exact"] is False
    assert value["reads"]["workers"]["shards"]["least"] is None
    assert value["mixing"]["distance"]["exact"] is False


@pytest.mark.parametrize(
    "size",
    [
        SIZE,  # every worker has a colour, and its batches
        ("--world-size", 3, "--workers", 9, "--batch-size", 1),  # every rank has one
        ("--world-size", 30, "--workers", 0, "--batch-size", 1),  # a scale
        ("--batch-size", 1, "--lanes", 4),
    ],
)
def test_the_picture_is_a_png_with_something_on_it(
    place: Path, tmp_path: Path, here: Here, size: tuple[Any, ...]
) -> None:
    path = tmp_path / "plan.png"
    done = here("plan", "packed", *size, "--plot", path, cwd=place)
    assert (done.status, done.err) == (0, "")
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 500 < pixels.shape[1]
    coloured = (pixels.max(axis=2).astype(int) - pixels.min(axis=2)) > 40
    assert coloured.mean() > 0.02
    assert len(np.unique(pixels[coloured], axis=0)) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        ("nowhere", 1, "nowhere: no such folder"),
        ("foreign", 1, "`streamshard index foreign`"),
        ("packed --world-size 0", 2, "--world-size"),
        ("packed --workers -1", 2, "--workers"),
        ("packed --batch-size 0", 2, "--batch-size"),
        ("packed --batch-size 41", 2, "fewer than one global batch of 1 x 41"),
        ("packed --world-size 5000000 --tail pad", 2, "5000000 ranks of 1 workers"),
        ("packed --shuffle none --window 5", 2, "window="),
        ("packed --shuffle some", 2, "--shuffle"),
        ("packed --tail keep", 2, "--tail"),
        ("packed --seed 9223372036854775808", 2, "seed is 9223372036854775808"),
        ("packed --epoch -1", 2, "--epoch"),
        ("packed --plot plan.svg", 2, "plan.svg: a name that ends in .png is wanted"),
        ("packed --batch-size 4 --plot nowhere/plan.png", 1, "nowhere/plan.png: "),
    ],
)
def test_bad_input_is_one_line(
    place: Path, here: Here, arguments: str, status: int, named: str
) -> None:
    done = here("plan", *arguments.split(), cwd=place)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("streamshard: ")
    assert done.err.count("\n") == 1
    assert named in done.err


def test_without_matplotlib_the_error_names_what_to_install(
    place: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else whole(name)
    )
    done = here("plan", "packed", "--plot", "plan.png", cwd=place)
    assert (done.status, done.out) == (2, "")
    assert "pip install 'streamshard[plot]'" in done.err
    assert not (place / "plan.png").exists()
