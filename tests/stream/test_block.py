"""A block keeps what is put into it, in one piece of memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from streamshard.codec.base import Form
from streamshard.stream.batch import Batch, BatchTuple, batch_of
from streamshard.stream.block import Block
from streamshard.stream.builder import ALIGNMENT, BlockBuilder
from tests.stream.data import same


def allocate(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


def full_builder() -> tuple[BlockBuilder, dict[str, object]]:
    builder = BlockBuilder()
    images = [torch.randint(0, 255, (3, 5, 7), dtype=torch.uint8) for _ in range(4)]
    transposed = [torch.randn(6, 2).T for _ in range(4)]  # not contiguous
    ragged = [torch.randn(n, 2).to(torch.bfloat16) for n in (1, 0, 3)]
    builder.stacked("jpg", Form(torch.uint8, (3, 5, 7)), images)
    builder.stacked("npy", Form(torch.float32, (2, 6)), transposed)
    builder.tensor("cls", np.arange(4))
    builder.ragged("png", ragged)
    builder.strings("txt", "text", [b"a", b"", "äß".encode()])
    builder.strings("bin", "bytes", [b"\0\1", b"", b"x" * 1000])
    builder.objects("json", [{"a": [1, None]}, "s", 3.5])
    values: dict[str, object] = {
        "jpg": torch.stack(images), "npy": torch.stack(transposed), "cls": torch.arange(4),
        "png": ragged, "txt": ["a", "", "äß"], "bin": [b"\0\1", b"", b"x" * 1000],
        "json": [{"a": [1, None]}, "s", 3.5],
    }  # fmt: skip
    return builder, values


def test_every_kind_of_part_comes_out_as_it_went_in() -> None:
    builder, values = full_builder()
    batch = batch_of(builder.finish(allocate, None))
    assert type(batch) is Batch
    assert same(dict(batch), values)


def test_parts_choose_tuple_and_single_value() -> None:
    builder, values = full_builder()
    block = builder.finish(allocate, ("cls", "txt"))
    batch = batch_of(block)
    assert type(batch) is BatchTuple
    assert same(tuple(batch), (values["cls"], values["txt"]))
    builder, values = full_builder()
    assert same(batch_of(builder.finish(allocate, "npy")), values["npy"])


def test_entries_are_aligned_and_do_not_overlap() -> None:
    builder, _ = full_builder()
    layout = builder.finish(allocate, None).layout
    end = 0
    for entry in sorted(layout.entries, key=lambda entry: entry.offset):
        assert entry.offset % ALIGNMENT == 0
        assert entry.offset >= end
        size = getattr(torch, entry.dtype).itemsize
        end = entry.offset + int(np.prod(entry.shape)) * size
    assert end <= layout.nbytes


def test_all_tensors_share_one_storage() -> None:
    builder, _ = full_builder()
    batch = batch_of(builder.finish(allocate, None))
    storages = {batch[name].untyped_storage().data_ptr() for name in ("jpg", "npy", "cls")}
    assert storages == {batch.block.memory.untyped_storage().data_ptr()}


def test_changing_one_part_in_place_does_not_disturb_the_gradient_of_another() -> None:
    builder = BlockBuilder()
    builder.tensor("a", np.ones(4, np.float32))
    builder.tensor("b", np.ones(4, np.float32))
    batch = batch_of(builder.finish(allocate, None))
    weight = torch.ones(4, requires_grad=True)
    loss = (weight * batch["a"]).sum()  # autograd saves a
    batch["b"].zero_()
    loss.backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(4))
    loss = (weight * batch["a"]).sum()
    batch["a"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_batch_pickles_and_is_equal_and_moves_as_one() -> None:
    builder, values = full_builder()
    batch = batch_of(builder.finish(allocate, None))
    again = pickle.loads(pickle.dumps(batch))
    assert type(again) is Batch
    assert same(dict(again), values)
    moved = batch.to("cpu")
    assert same(dict(moved), values)
    on_meta = batch.to("meta")
    assert on_meta["jpg"].device.type == "meta"
    assert on_meta["jpg"].shape == batch["jpg"].shape
    assert on_meta["txt"] == values["txt"]


def test_an_empty_block_has_empty_parts() -> None:
    builder = BlockBuilder()
    builder.stacked("jpg", Form(torch.uint8, (3, 2, 2)), [])
    builder.strings("txt", "text", [])
    builder.ragged("png", [])
    batch = batch_of(builder.finish(allocate, None))
    assert batch["jpg"].shape == (0, 3, 2, 2)
    assert batch["txt"] == []
    assert batch["png"] == []


@pytest.mark.gpu
def test_a_pinned_block_is_pinned_once_and_copied_once() -> None:
    builder, values = full_builder()
    pinned = batch_of(builder.finish(allocate, None)).pin_memory()
    assert pinned["jpg"].is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert same(moved["npy"].cpu(), values["npy"])


def test_blocks_are_read_by_their_layout_alone(tmp_path: Path) -> None:
    builder, values = full_builder()
    block = builder.finish(allocate, None)
    (tmp_path / "block").write_bytes(block.memory.numpy().tobytes())
    memory = torch.from_numpy(np.fromfile(tmp_path / "block", np.uint8))
    assert same(dict(batch_of(Block(memory, block.layout))), values)


@pytest.mark.parametrize("tensors", [
    [torch.ones(2, 3, requires_grad=True) * number for number in range(3)],
    [torch.tensor([1 + 2j]).conj(), torch.tensor([3 - 1j])],
    [torch.tensor([True, False]), torch.tensor([False, True])],
    [torch.arange(6).reshape(2, 3).T, torch.arange(6, 12).reshape(3, 2)],
    [torch.zeros(2, 0, 3), torch.ones(2, 0, 3)],
    [torch.tensor(1.5, dtype=torch.bfloat16), torch.tensor(2.5, dtype=torch.bfloat16)],
], ids=["grad", "conj", "bool", "transposed", "empty", "bfloat16"])  # fmt: skip
def test_tensors_of_any_kind_are_stacked(tensors: list[torch.Tensor]) -> None:
    builder = BlockBuilder()
    builder.tensor("first", np.arange(3, dtype=np.uint8))  # what follows is aligned nevertheless
    builder.stacked("x", Form(tensors[0].dtype, tuple(tensors[0].shape)), tensors)
    stacked = batch_of(builder.finish(allocate, None))["x"]
    expected = torch.stack(tensors).detach().resolve_conj()
    assert torch.equal(stacked, expected)
    assert stacked.dtype == expected.dtype
    assert not stacked.requires_grad
