"""Mixtures: several datasets in one stream, with every promise of a single one."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data

import streamshard as ss
from streamshard.errors import CursorError, SampleError, UsageError
from tests.stream.data import flat, make_images, make_tars, same

COUNTS = {"few": (7, 8), "some": (30, 40, 50), "many": (500, 600, 900, 1000)}
WEIGHTS = {"few": 0.2, "some": 0.5, "many": 0.3}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tars")
    return {name: make_tars(folder / name, counts) for name, counts in COUNTS.items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pictures")
    return {
        name: make_images(folder / name, count, seed=count)
        for name, count in {"a": 40, "b": 25}.items()
    }


def mixed(urls: dict[str, str], **options: Any) -> ss.ShardDataset:
    how: dict[str, Any] = {"weights": WEIGHTS, "stop": 1200}
    how |= {name: options.pop(name) for name in ("stop", "weights", "samples") if name in options}
    defaults: dict[str, Any] = {"batch_size": 16, "shuffle": True, "window": 100, "seed": 5}
    return ss.ShardDataset(ss.Mixture(urls, **how), **{**defaults, **options})


def test_batches_hold_the_proportions_and_say_where_each_sample_is_from(
    urls: dict[str, str],
) -> None:
    seen: Counter[int] = Counter()
    for batch in ss.StreamLoader(mixed(urls, batch_size=50)):
        assert batch["__source__"].dtype == torch.int64
        counts = torch.bincount(batch["__source__"], minlength=3).tolist()
        for count, weight in zip(counts, WEIGHTS.values(), strict=True):
            assert abs(count - 50 * weight) < 3
        seen.update(batch["__source__"].tolist())
        for key, text, source in zip(
            batch["__key__"], batch["txt"], batch["__source__"].tolist(), strict=True
        ):
            assert key == text
            shard = int(key[1 : key.index("/")])
            assert shard < len(list(COUNTS.values())[source])
    assert sum(seen.values()) == 1200
    assert all(
        abs(seen[number] - 1200 * weight) < 30 for number, weight in enumerate(WEIGHTS.values())
    )


def test_every_source_comes_whole_before_it_comes_again(urls: dict[str, str]) -> None:
    """Over the borders of the mixture's epochs, and however often a source is through."""
    loader = ss.StreamLoader(mixed(urls, lanes=1, tail="exact"))
    given: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for _ in range(4):
        for batch in loader:
            for key, source in zip(batch["__key__"], batch["__source__"].tolist(), strict=True):
                given[source].append(key)
    for source, counts in enumerate(COUNTS.values()):
        size = sum(counts)
        rounds = [given[source][at : at + size] for at in range(0, len(given[source]), size)]
        assert all(len(set(keys)) == len(keys) for keys in rounds)
        if len(rounds) > 2:
            assert set(rounds[0]) == set(rounds[1])
            assert rounds[0] != rounds[1]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_batches_do_not_depend_on_workers(urls: dict[str, str], start_method: str) -> None:
    loader = ss.StreamLoader(mixed(urls))
    expected = [list(loader), list(loader)]
    with ss.StreamLoader(mixed(urls), num_workers=3, start_method=start_method) as loader:
        for epoch in expected:
            assert same(list(map(dict, loader)), list(map(dict, epoch)))


def test_a_plain_dataloader_gives_the_same_batches(urls: dict[str, str]) -> None:
    dataset = mixed(urls)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, persistent_workers=True, collate_fn=list_of_keys
    )
    ours = ss.StreamLoader(mixed(urls))
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert [key for keys in loader for key in keys] == flat(ours)


def list_of_keys(batch: Any) -> list[str]:
    return list(batch["__key__"])


@pytest.mark.parametrize("tail", ["drop", "pad", "exact"])
def test_ranks_share_a_mixture_exactly(urls: dict[str, str], tail: str) -> None:
    world = 3
    options: dict[str, Any] = {"tail": tail, "lanes": 6, "grain": 7, "batch_size": 7, "stop": 1201}
    whole = flat(ss.StreamLoader(mixed(urls, **{**options, "tail": "exact"})))
    assert len(whole) == 1197  # 1,201 samples are 171 whole grains
    ranks = [
        list(ss.StreamLoader(mixed(urls, **options, world=ss.World(rank, world))))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    together = [
        key
        for step in zip(*ranks, strict=True)
        for batch in step
        for key, real in zip(
            batch["__key__"], batch.get("__mask__", [True] * len(batch["__key__"])), strict=True
        )
        if real
    ]
    assert together == whole[: len(together)]
    assert len(whole) - len(together) == (len(whole) % 21 if tail == "drop" else 0)


def test_a_cursor_goes_on_anywhere_and_keeps_its_lanes_into_the_next_epoch(
    urls: dict[str, str],
) -> None:
    loader = ss.StreamLoader(mixed(urls))
    whole = [*flat(loader), *flat(loader), *flat(loader)]
    rule = {name: loader.state_dict()[name] for name in ("lanes", "grain")}
    for stop in (0, 1, 40, 74, 75, 76, 149):
        first = ss.StreamLoader(mixed(urls), num_workers=stop % 2)
        before: list[str] = []
        with first:
            while len(before) < stop * 16:
                for batch in first:
                    before += batch["__key__"]
                    if len(before) == stop * 16:
                        break
        state = json.loads(json.dumps(first.state_dict()))
        # Another batch size, and two ranks, whose default lanes would be others.
        ranks = [
            ss.StreamLoader(mixed(urls, batch_size=25, tail="exact", world=ss.World(rank, 2)))
            for rank in range(2)
        ]
        for rank in ranks:
            rank.load_state_dict(state)
        after: list[str] = []
        while len(before) + len(after) < len(whole):
            for step in zip(*ranks, strict=True):
                after += [key for batch in step for key in batch["__key__"]]
        assert before + after == whole
        assert {name: ranks[0].state_dict()[name] for name in rule} == rule


def test_another_mixture_refuses_the_state(urls: dict[str, str]) -> None:
    state = ss.StreamLoader(mixed(urls)).state_dict()
    others: list[dict[str, Any]] = [
        {"weights": {**WEIGHTS, "few": 0.3}},
        {"stop": 1300},
        {"window": 90},
        {"seed": 6},
    ]
    for other in others:
        with pytest.raises(CursorError):
            ss.StreamLoader(mixed(urls, **other)).load_state_dict(state)
    reordered = {name: urls[name] for name in reversed(urls)}
    with pytest.raises(CursorError, match="fingerprint"):
        ss.StreamLoader(mixed(reordered)).load_state_dict(state)


def test_samples_say_how_many_of_each_make_an_epoch(urls: dict[str, str]) -> None:
    samples = {"few": 50, "some": 100, "many": 50}
    options: dict[str, Any] = {"batch_size": 20, "lanes": 1, "tail": "exact"}
    dataset = mixed(urls, weights=None, stop="longest", samples=samples, **options)
    sources = [n for batch in ss.StreamLoader(dataset) for n in batch["__source__"].tolist()]
    assert Counter(sources) == {0: 50, 1: 100, 2: 50}


@pytest.mark.parametrize(("stop", "samples"), [("first", 75), ("longest", 10_000), (1200, 1200)])
def test_an_epoch_ends_where_stop_says(urls: dict[str, str], stop: Any, samples: int) -> None:
    """At weights .2, .5, .3 the 15 of the first are through after 75, the 3,000 of the last after
    10,000; an epoch ends at a whole grain."""
    dataset = mixed(urls, stop=stop, batch_size=5, tail="exact")
    assert len(dataset) == samples // 5
    assert ss.StreamLoader(dataset).steps_left == samples // 5


def test_without_weights_all_sources_end_together(urls: dict[str, str]) -> None:
    dataset = mixed(urls, weights=None, stop="longest", batch_size=5, lanes=1, tail="exact")
    keys = [
        (source, key)
        for batch in ss.StreamLoader(dataset)
        for key, source in zip(batch["__key__"], batch["__source__"].tolist(), strict=True)
    ]
    assert len(keys) == len(set(keys)) == sum(sum(counts) for counts in COUNTS.values())


def test_sources_have_decoders_views_and_orders_of_their_own(pictures: dict[str, str]) -> None:
    a = ss.ShardDataset(
        pictures["a"], batch_size=1, decode={"jpg": ss.RandomResizedCrop(16)}
    ).select(labels=[0, 1])
    b = ss.ShardDataset(
        pictures["b"], batch_size=1, shuffle="full", decode={"jpg": ss.CenterCrop(16)}
    )
    dataset = ss.ShardDataset(
        ss.Mixture({"a": a, "b": b}, weights={"a": 1, "b": 1}, stop="first"),
        batch_size=10, parts=("jpg", "cls", "__source__", "__key__"), lanes=1,
    )  # fmt: skip
    assert dataset.classes == a.classes
    keys: dict[int, list[str]] = {0: [], 1: []}
    for images, labels, sources, names in ss.StreamLoader(dataset):
        assert images.shape == (10, 3, 16, 16)
        assert set(labels[sources == 0].tolist()) <= {0, 1}
        for source, name in zip(sources.tolist(), names, strict=True):
            keys[source].append(name)
    in_pack_order = [batch["__key__"][0] for batch in a]
    assert keys[0] == in_pack_order[: len(keys[0])]
    in_pack_order = list(ss.open(pictures["b"]).keys())
    assert keys[1] != in_pack_order[: len(keys[1])]


def test_augmentations_survive_workers_and_resume(pictures: dict[str, str]) -> None:
    def dataset() -> ss.ShardDataset:
        return ss.ShardDataset(
            ss.Mixture(pictures, stop=120), batch_size=8, shuffle=True, parts="jpg",
            decode={"jpg": ss.RandomResizedCrop(16)},
        )  # fmt: skip

    expected = list(ss.StreamLoader(dataset()))
    loader = ss.StreamLoader(dataset())
    iterator = iter(loader)
    first = [next(iterator) for _ in range(4)]
    with ss.StreamLoader(dataset(), num_workers=2) as second:
        second.load_state_dict(loader.state_dict())
        assert same([*first, *second], expected)


def test_decoders_that_give_other_forms_make_lists_or_are_refused(
    pictures: dict[str, str],
) -> None:
    small = ss.ShardDataset(pictures["a"], batch_size=1, decode={"jpg": ss.CenterCrop(16)})
    large = ss.ShardDataset(pictures["b"], batch_size=1, decode={"jpg": ss.CenterCrop(20)})
    dataset = ss.ShardDataset(ss.Mixture({"s": small, "l": large}), batch_size=8, parts="jpg")
    sizes = {image.shape for batch in ss.StreamLoader(dataset) for image in batch}
    assert sizes == {(3, 16, 16), (3, 20, 20)}
    # A callable of the user's: the first value decides, and another form is an error that says so.
    own = ss.ShardDataset(pictures["b"], batch_size=1, decode={"jpg": torch.Tensor.float})
    dataset = ss.ShardDataset(ss.Mixture({"s": small, "o": own}), batch_size=8, parts="jpg")
    with pytest.raises(UsageError, match="part jpg"):
        list(ss.StreamLoader(dataset))


def test_transforms_are_each_source_s_own(urls: dict[str, str]) -> None:
    def marked(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "txt": "!" + sample["txt"]}

    plain = ss.ShardDataset(urls["few"], batch_size=1)
    changed = ss.ShardDataset(urls["some"], batch_size=1, transform=marked)
    dataset = ss.ShardDataset(ss.Mixture({"p": plain, "c": changed}), batch_size=9)
    for batch in ss.StreamLoader(dataset):
        for text, source in zip(batch["txt"], batch["__source__"].tolist(), strict=True):
            assert text.startswith("!") == (source == 1)


def test_graphs_of_several_datasets_are_one_batch(tmp_path: Path) -> None:
    def graph(nodes: int, mark: int) -> Data:
        edges = torch.randint(0, nodes, (2, mark * nodes))
        return Data(x=torch.randn(nodes, 4), edge_index=edges, y=torch.tensor([mark]))

    packed, by_key = {}, {}
    for mark, name in ((1, "thin"), (3, "thick")):
        graphs = [graph(nodes, mark) for nodes in range(2, 40)]
        ss.pack_graphs(graphs, tmp_path / name, shard_size="8KB")
        packed[name] = str(tmp_path / name)
        shards = ss.open(packed[name])
        for sample in map(shards.__getitem__, range(len(shards))):
            by_key[name, sample["__key__"]] = sample["graph"]
    dataset = ss.ShardDataset(ss.Mixture(packed), batch_size=16, shuffle=True)
    for batch in ss.StreamLoader(dataset):
        sources = batch["__source__"].tolist()
        datas = [
            by_key[["thin", "thick"][source], key]
            for key, source in zip(batch["__key__"], sources, strict=True)
        ]
        expected = Batch.from_data_list(datas)
        graph_batch = batch["graph"]
        assert set(graph_batch.keys()) == set(expected.keys())
        for name in expected.keys():  # noqa: SIM118
            assert torch.equal(graph_batch[name], expected[name])
        assert batch["graph"].y.tolist() == [[1, 3][source] for source in sources]


def test_graphs_with_other_fields_are_refused(tmp_path: Path) -> None:
    edges = torch.tensor([[0, 1], [1, 0]])
    ss.pack_graphs([Data(x=torch.zeros(2, 3), edge_index=edges)], tmp_path / "a")
    ss.pack_graphs([Data(x=torch.zeros(2, 4), edge_index=edges)], tmp_path / "b")
    mixture = ss.Mixture({"a": str(tmp_path / "a"), "b": str(tmp_path / "b")})
    with pytest.raises(UsageError, match=r"part 'graph' of .* can't be mixed: field 'x' has shape"):
        ss.ShardDataset(mixture, batch_size=1)


def test_a_sample_that_is_skipped_names_its_source(urls: dict[str, str]) -> None:
    def picky(text: str) -> str:
        if text == "s1/0003":
            raise ValueError("not this one")
        return text

    dataset = mixed(urls, decode={"txt": picky}, on_error="skip")
    skipped = [line for batch in ss.StreamLoader(dataset) for line in batch.skipped]
    # The 3,000 of "many" are not through in an epoch of 1,200.
    assert {urls["few"], urls["some"]} <= {line.partition("/shard-")[0] for line in skipped}
    with pytest.raises(SampleError, match="not this one"):
        list(ss.StreamLoader(mixed(urls, decode={"txt": picky})))


def test_what_does_not_go_together_is_refused(
    urls: dict[str, str], pictures: dict[str, str]
) -> None:
    def make(sources: dict[str, Any], how: dict[str, Any], **options: Any) -> ss.ShardDataset:
        return ss.ShardDataset(ss.Mixture(sources, **how), **{"batch_size": 4, **options})

    with pytest.raises(UsageError, match="at least one source"):
        make({}, {})
    with pytest.raises(UsageError, match="weights= and sources differ in few, many"):
        make(urls, {"weights": {"some": 1}})
    with pytest.raises(UsageError, match="must be a number above 0"):
        make(urls, {"weights": {**WEIGHTS, "few": 0}})
    with pytest.raises(UsageError, match='must be "first", "longest" or a number'):
        make(urls, {"stop": "shortest"})
    with pytest.raises(UsageError, match="both weights and stop"):
        make(urls, {"samples": dict.fromkeys(urls, 1), "stop": 9})
    with pytest.raises(UsageError, match=r"'three' is a int; a URL or a ShardDataset"):
        make({"three": 3}, {})
    with pytest.raises(UsageError, match=r"is in only one of .* parts= names those"):
        make({"t": urls["few"], "p": pictures["a"]}, {})
    with pytest.raises(UsageError, match="no part 'txt'"):
        make({"t": urls["few"], "p": pictures["a"]}, {}, parts=("txt", "cls"))
    with pytest.raises(UsageError, match="decode= names part 'png', which no source has"):
        make(urls, {}, decode={"png": bytes})
    with pytest.raises(UsageError, match="before one grain of 4"):
        make(urls, {"stop": 3})
    with pytest.raises(UsageError, match="index= belongs to one dataset"):
        make(urls, {}, index="elsewhere")
    mixture = mixed(urls)
    with pytest.raises(UsageError, match="chosen from by its sources"):
        mixture.select(labels=[1])
    with pytest.raises(UsageError, match="chosen from by its sources"):
        make({"m": mixture}, {})
    assert len(make({"t": urls["few"], "p": pictures["a"]}, {}, parts=("cls",))) > 0


def test_one_number_for_two_classes_is_refused(tmp_path: Path) -> None:
    for name, classes in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        with ss.ShardWriter(tmp_path / name, classes=classes) as writer:
            for number in range(8):
                writer.write({"__key__": f"{number:03d}", "cls": number % 2, "txt": name})
    urls = {name: str(tmp_path / name) for name in ("a", "b")}
    with pytest.raises(UsageError, match="would mean two things"):
        ss.ShardDataset(ss.Mixture(urls), batch_size=2)
    turned = ss.ShardDataset(urls["b"], batch_size=1, decode={"cls": lambda label: 1 - label})
    dataset = ss.ShardDataset(
        ss.Mixture({"a": urls["a"], "b": turned}), batch_size=4, parts=("cls", "__key__", "txt")
    )
    for labels, keys, texts in ss.StreamLoader(dataset):
        for label, key, text in zip(labels.tolist(), keys, texts, strict=True):
            assert label == (int(key) % 2 if text == "a" else 1 - int(key) % 2)
    assert len(ss.ShardDataset(ss.Mixture(urls), batch_size=2, parts="txt")) == 8


def test_choices_of_parts_reach_over_sources(tmp_path: Path) -> None:
    for name, part in (("a", "txt"), ("b", "caption.txt")):
        with ss.ShardWriter(tmp_path / name) as writer:
            for number in range(6):
                writer.write({"__key__": f"{number:03d}", part: f"{name}{number}"})
    urls = {name: str(tmp_path / name) for name in ("a", "b")}
    dataset = ss.ShardDataset(ss.Mixture(urls), batch_size=4, parts="txt;caption.txt")
    texts = [text for batch in ss.StreamLoader(dataset) for text in batch]
    assert sorted(texts) == [f"{name}{number}" for name in "ab" for number in range(6)]


def test_what_is_said_of_a_mixture_of_datasets_is_refused(urls: dict[str, str]) -> None:
    sources = {name: ss.ShardDataset(url, batch_size=1) for name, url in urls.items()}
    options: list[dict[str, Any]] = [
        {"transform": dict}, {"decode": {"txt": bytes}}, {"shuffle": True}, {"verify": False},
    ]  # fmt: skip
    for option in options:
        with pytest.raises(UsageError, match="those of the mixture's sources"):
            ss.ShardDataset(ss.Mixture(sources), batch_size=4, **option)


def test_a_mixture_of_one_says_so_too(urls: dict[str, str]) -> None:
    mixture = ss.Mixture({"few": urls["few"]})
    dataset = ss.ShardDataset(mixture, batch_size=5, parts=("txt", "__source__"))
    texts, sources = next(iter(ss.StreamLoader(dataset)))
    assert len(texts) == 5
    assert sources.tolist() == [0] * 5


def test_many_sources_keep_few_files_open(tmp_path: Path) -> None:
    urls = {str(n): make_tars(tmp_path / str(n), [2] * 12) for n in range(10)}
    dataset = ss.ShardDataset(ss.Mixture(urls), batch_size=8, lanes=1, tail="exact")
    before = len(os.listdir("/proc/self/fd"))
    assert len(flat(ss.StreamLoader(dataset))) == 240
    assert len(os.listdir("/proc/self/fd")) - before <= 3 * 40


def test_no_mixture_where_one_dataset_is_wanted(urls: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="a URL or path is wanted"):
        ss.webdataset_source(ss.Mixture(urls), batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="by name"):
        ss.Mixture([urls["few"]])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"it must be an ss\.Budget"):
        ss.ShardDataset(urls["few"], budget=40)  # type: ignore[arg-type]


def test_a_loader_closed_in_a_pass_says_so(urls: dict[str, str]) -> None:
    loader = ss.StreamLoader(mixed(urls), num_workers=1)
    iterator = iter(loader)
    next(iterator)
    loader.close()
    with pytest.raises(UsageError, match="closed in the middle of a pass"):
        next(iterator)
