"""The copy to a device: no slot is written while it is read, nothing is used before it is there."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

import streamshard as ss
from streamshard.errors import UsageError
from streamshard.stream import device
from streamshard.stream.block import Block
from streamshard.stream.on_device import Arrival
from tests.stream.data import make_images, same
from tests.stream.late import UNWRITTEN, LateMark, LateSide

COUNT, BATCH = 120, 20
META = torch.device("meta")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Arrays that say which sample they are of, as its class does."""
    folder = tmp_path_factory.mktemp("arrays") / "data"
    with ss.ShardWriter(folder, shard_size="100KB") as writer:
        for number in range(COUNT):
            array = np.full((50,), number, np.int32)
            writer.write({"__key__": f"{number:03d}", "npy": array, "cls": number})
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_images(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateSide:
    """The device `meta` is one whose work is late."""
    side = LateSide()
    monkeypatch.setitem(device._SIDES, "meta", lambda _: side)
    return side


class Lent(NamedTuple):
    """Blocks that are lent, and where they lie."""

    blocks: Iterator[tuple[Block, int]]
    out: list[torch.Tensor]

    def give_back(self) -> None:
        """The oldest is written again at once: the worst that its worker may do."""
        self.out.pop(0).fill_(0xEE)


def lent(url: str) -> Lent:
    course = ss.ShardDataset(url, batch_size=BATCH, parts=("npy", "cls")).course
    out: list[torch.Tensor] = []

    def allocate(nbytes: int) -> torch.Tensor:
        memory = torch.zeros(nbytes, dtype=torch.uint8)
        out.append(memory)
        assert len(out) <= device.LENT
        return memory

    world = ss.World()
    made = course.make(course.first_cursor(world, 0), world, range(COUNT // BATCH), allocate)
    return Lent(((block.lent(), number) for number, block in enumerate(made)), out)


def is_whole(batch: Any, number: int) -> bool:
    """Whether a batch is the one of this number, to the last byte."""
    expected = torch.arange(number * BATCH, (number + 1) * BATCH)
    arrays, classes = batch
    return torch.equal(classes, expected) and bool((arrays == expected[:, None]).all())


def delivered(url: str, side: LateSide, taken: int = COUNT // BATCH) -> list[bool]:
    """Whether each batch was whole when it was used; all slots are back at the end."""
    blocks, out = there = lent(url)
    ahead = device._Ahead[int](side, there.give_back, Arrival({}, None, META))
    batches, whole = device._overlapped(blocks, ahead), []
    for number in range(taken):
        batch, tag = next(batches)
        assert tag == number
        side.used()
        whole.append(is_whole(batch, number))
    del batches
    assert not out
    side.settle()
    return whole


@pytest.mark.parametrize("taken", range(COUNT // BATCH + 1))
def test_a_slot_is_given_back_when_its_copy_is_done_and_not_before(arrays: str, taken: int) -> None:
    """For every number of batches after which a pass may be broken off."""
    side = LateSide()
    assert delivered(arrays, side, taken) == [True] * taken
    assert side.torn == 0, "also of what was not delivered any more"


def test_a_slot_given_back_too_early_shows(arrays: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with nobody waiting for copies, batches hold what was written after."""
    monkeypatch.setattr(LateMark, "synchronize", lambda mark: None)
    assert not any(delivered(arrays, LateSide()))


def test_a_batch_used_before_it_arrived_shows(arrays: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other control: what the using stream was not told to wait for is not there."""
    monkeypatch.setattr(LateSide, "hand_over", lambda side, mark, tensors: None)
    monkeypatch.setattr(LateMark, "synchronize", lambda mark: None)
    ahead = device._Ahead[int](LateSide(), lambda: None, Arrival({}, None, META))
    batches = device._overlapped(lent(arrays).blocks, ahead)  # whose end waits
    batch, _ = next(batches)
    assert set(batch[0].view(torch.uint8).unique().tolist()) == {UNWRITTEN}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_that_were_copied_late_are_whole(
    arrays: str, late: LateSide, workers: int, prefetch: int
) -> None:
    """Through processes that write their slots again as soon as they may."""
    dataset = ss.ShardDataset(arrays, batch_size=BATCH, parts=("npy", "cls"))
    with ss.StreamLoader(dataset, num_workers=workers, prefetch=prefetch, device="meta") as loader:
        for _ in range(3):
            kept = []
            for number, batch in enumerate(loader):
                late.used()
                assert is_whole(batch, number)
                kept.append(batch)
            assert all(is_whole(batch, number) for number, batch in enumerate(kept)), "for keeps"
    late.settle()
    assert late.torn == 0


def test_what_was_copied_before_an_error_is_delivered_first(arrays: str, late: LateSide) -> None:
    """As without a device, where nothing is copied ahead; and no slot is lost."""

    def decode(array: Any) -> Any:
        if int(array[0]) == 3 * BATCH:
            raise ValueError("no such number")
        return array

    dataset = ss.ShardDataset(
        arrays, batch_size=BATCH, parts=("npy", "cls"), decode={"npy": decode}
    )
    with ss.StreamLoader(dataset, num_workers=0, device="meta") as loader:
        batches = iter(loader)
        for number in range(3):
            batch = next(batches)
            late.used()
            assert is_whole(batch, number)
        with pytest.raises(ss.errors.SampleError, match="no such number"):
            next(batches)
        assert loader.state_dict()["position"] == 3 * BATCH


@pytest.mark.parametrize("kind", ["late", "meta"])
def test_work_that_fails_loses_no_slot(
    arrays: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """More failures than there are slots, and the stream goes on behind each."""
    if kind == "late":
        request.getfixturevalue("late")
    failures = 0

    def fail_now_and_then(batch: Any) -> Any:
        nonlocal failures
        if failures < 12:
            failures += 1
            raise RuntimeError("out of luck")
        return batch

    dataset = ss.ShardDataset(arrays, batch_size=BATCH, parts=("npy", "cls"))
    with ss.StreamLoader(
        dataset, num_workers=1, prefetch=1, device="meta", on_device=fail_now_and_then
    ) as loader:
        while failures < 12:
            state = loader.state_dict()
            with pytest.raises(RuntimeError, match="out of luck"):
                next(iter(loader))
            assert loader.state_dict() == state
            loader.load_state_dict(state)
        assert len(list(loader)) == COUNT // BATCH


def test_a_device_that_is_not_there_is_refused_before_workers_start(
    arrays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    loader = ss.StreamLoader(
        ss.ShardDataset(arrays, batch_size=BATCH), num_workers=1, device="cuda:1"
    )
    with pytest.raises(UsageError, match=r"'cuda:1', and torch finds 1 CUDA devices.*device=None"):
        next(iter(loader))
    assert loader._pool is None


class TestOnDevice:
    """`on_device` works on every batch where it has arrived, in whatever form batches come."""

    def batches(self, url: str, late: LateSide | None = None, **options: Any) -> list[Any]:
        parts = options.pop("parts", None)
        dataset = ss.ShardDataset(
            url,
            batch_size=8,
            shuffle=True,
            parts=parts,
            tail="pad",
            decode={"jpg": ss.RandomResizedCrop(16)},
        )
        device = "meta" if late else None
        with ss.StreamLoader(dataset, device=device, **options) as loader:
            found = []
            for batch in loader:
                if late:
                    late.used()
                    batch = copy.deepcopy(batch)  # as it is now
                found.append(batch)
            return found

    @pytest.mark.parametrize("where", ["here", "late"])
    @pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "reuse": True}])
    @pytest.mark.parametrize("parts", [None, ("cls", "jpg"), ("jpg", "__mask__"), "jpg"])
    def test_a_part_is_worked_on_and_the_others_are_as_they_were(
        self, images: str, late: LateSide, where: str, options: Any, parts: Any
    ) -> None:
        normalize = ss.Normalize.imagenet()
        expected = self.batches(images, parts=parts)
        there = late if where == "late" else None
        found = self.batches(images, there, parts=parts, on_device={"jpg": normalize}, **options)
        for batch, other in zip(found, expected, strict=True):
            assert type(batch) is type(other)
            for name, value in self.named(batch, parts).items():
                before = self.named(other, parts)[name]
                if name == "jpg":
                    assert torch.equal(value, normalize(before))
                    assert value.is_contiguous(memory_format=torch.channels_last)
                elif not options.get("reuse"):
                    assert same(value, before)

    def named(self, batch: Any, parts: Any) -> dict[str, Any]:
        if parts is None:
            return dict(batch)
        return {parts: batch} if isinstance(parts, str) else dict(zip(parts, batch, strict=True))

    def test_what_it_makes_is_kept_where_the_batch_before_is_written_again(
        self, images: str
    ) -> None:
        options: Any = {"num_workers": 1, "prefetch": 1, "reuse": True, "parts": "jpg"}
        kept = self.batches(images, on_device={"jpg": ss.Normalize.imagenet()}, **options)
        expected = self.batches(images, on_device={"jpg": ss.Normalize.imagenet()}, parts="jpg")
        assert same(kept, expected)

    def test_a_function_gets_the_whole_batch_and_gives_what_it_likes(
        self, images: str, late: LateSide
    ) -> None:
        def mixed(batch: Any) -> dict[str, Any]:
            pixels = batch["jpg"].float()
            return {"pixels": (pixels + pixels.flip(0)) / 2, "classes": [batch["cls"]]}

        expected = [mixed(batch) for batch in self.batches(images)]
        assert same(self.batches(images, late, on_device=mixed, num_workers=2), expected)

    def test_a_batch_that_was_worked_on_is_copied_moved_and_pickled_with_it(
        self, images: str
    ) -> None:
        for parts in (None, ("jpg", "cls")):
            for batch in self.batches(images, on_device={"jpg": ss.Normalize.imagenet()}):
                copies = batch.clone(), batch.to("cpu"), pickle.loads(pickle.dumps(batch))
                assert all(same(dict(copy), dict(batch)) for copy in copies), parts
                assert batch.to("meta")["jpg"].dtype == torch.float32

    def test_everything_that_was_made_is_handed_over(self, arrays: str, late: LateSide) -> None:
        """In dicts, lists, tuples, dataclasses and graphs: none of it is used again too early."""

        class Pair(NamedTuple):
            one: Any
            two: Any

        def work(batch: Any) -> Any:
            graph = Data(x=batch["npy"] + 1, edge_index=batch["cls"][None].repeat(2, 1))
            return {"graph": graph, "pair": Pair([batch["npy"] * 2], batch["cls"] + 1)}

        dataset = ss.ShardDataset(arrays, batch_size=BATCH)
        batch = next(iter(ss.StreamLoader(dataset, device="meta", on_device=work)))
        made = [
            batch["graph"].x,
            batch["graph"].edge_index,
            batch["pair"].one[0],
            batch["pair"].two,
        ]
        handed = {tensor.untyped_storage().data_ptr() for tensor in late.handed_over}
        assert {tensor.untyped_storage().data_ptr() for tensor in made} <= handed

    @pytest.mark.parametrize(
        ("on_device", "says"),
        [
            ({"png": ss.Normalize.imagenet()}, "no part 'png' to work on; a batch has jpg, cls"),
            (lambda batch: None, "on_device gave None"),
        ],
    )
    def test_what_it_can_not_do_is_said(self, images: str, on_device: Any, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            self.batches(images, on_device=on_device, parts=("jpg", "cls"))

    def test_what_is_no_function_is_refused_at_once(self, images: str) -> None:
        dataset = ss.ShardDataset(images, batch_size=8)
        for on_device in ("jpg", {"jpg": 3}, 5):
            with pytest.raises(UsageError, match="a function of the batch"):
                ss.StreamLoader(dataset, on_device=on_device)  # type: ignore[arg-type]


def test_only_what_moves_is_copied(arrays: str, tmp_path: Path) -> None:
    """Text stays on the host, and comes along when the batch comes back."""
    with ss.ShardWriter(tmp_path / "texts") as writer:
        for number in range(8):
            writer.write({"__key__": f"{number}", "txt": "x" * 10_000, "cls": number})
    dataset = ss.ShardDataset(tmp_path / "texts", batch_size=4)
    expected = [dict(batch) for batch in ss.StreamLoader(dataset)]
    copied: list[int] = []

    class Counting(LateSide):
        def copy(self, memory: torch.Tensor) -> torch.Tensor:
            copied.append(len(memory))
            return super().copy(memory)

    side = Counting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(device._SIDES, "meta", lambda _: side)
        batches = list(ss.StreamLoader(dataset, num_workers=1, device="meta"))
    side.settle()
    assert copied == [64, 64]
    for batch, other in zip(batches, expected, strict=True):
        assert same(dict(batch), other)
        assert same(dict(batch.to("cpu").clone()), other)
        assert same(dict(pickle.loads(pickle.dumps(batch))), other)
