"""The device, with a GPU: what its twin promises in `test_device.py` and `test_gpu_decode.py`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamshard as ss
from streamshard.stream import mapped
from streamshard.stream.workers import WorkerPool
from tests.stream.data import make_images, same
from tests.stream.test_gpu_decode import CROPS, TO_CPU, dataset, differences, photos

__all__ = ["photos"]  # a fixture
pytestmark = pytest.mark.gpu

COUNT, BATCH, WIDTH = 64, 4, 100_000


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Large arrays, so that copies take a while, that say which sample they are of."""
    folder = tmp_path_factory.mktemp("arrays") / "data"
    with ss.ShardWriter(folder) as writer:
        for number in range(COUNT):
            array = np.full(WIDTH, number, np.int32)
            writer.write({"__key__": f"{number:03d}", "npy": array, "cls": number})
    return str(folder)


def loader_of(url: str, **options: Any) -> ss.StreamLoader:
    data = ss.ShardDataset(url, batch_size=BATCH, shuffle=True, parts=("npy", "cls"))
    defaults: dict[str, Any] = {"num_workers": 2, "prefetch": 1, "device": "cuda"}
    return ss.StreamLoader(data, **{**defaults, **options})


def is_whole(batch: Any) -> torch.Tensor:
    """On the device, in its stream's order: whether each array is of its class."""
    arrays, classes = batch
    answer: torch.Tensor = (arrays == classes[:, None]).all()
    return answer


def keep_busy(tenths: float) -> None:
    """Let the current stream do nothing for about so many tenths of a second."""
    torch.cuda._sleep(int(tenths * 2e8))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.parametrize("pace", ["at once", "slow loop", "busy GPU"])
def test_no_slot_is_written_while_it_is_read(arrays: str, start_method: str, pace: str) -> None:
    answers, kept = [], []
    with loader_of(arrays, start_method=start_method) as loader:
        for epoch in range(4):
            for number, batch in enumerate(loader):
                if pace == "busy GPU" and number % 4 == 0:
                    keep_busy(1)  # what uses the batch is far behind
                if pace == "slow loop":
                    time.sleep(0.01)
                answers.append(is_whole(batch))
                if epoch == 0:
                    kept.append(batch)
        answers += map(is_whole, kept)
        assert torch.stack(answers).all()
        assert len(answers) == 5 * COUNT // BATCH


def test_blocks_lie_in_locked_pages_and_are_not_pinned_again(arrays: str) -> None:
    with loader_of(arrays) as loader:
        list(loader)
        assert isinstance(loader._pool, WorkerPool)
        for handle in loader._pool._handles:
            assert torch.from_numpy(handle.memory._ring).is_pinned()


def test_where_pages_can_not_be_locked_batches_are_the_same(
    arrays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_lock_pages", lambda ring, device: None)
    with loader_of(arrays) as loader:
        assert torch.stack([is_whole(batch) for _ in range(3) for batch in loader]).all()


def test_pages_that_are_locked_already_are_no_error_of_a_later_kernel(arrays: str) -> None:
    """CUDA keeps an error until somebody asks; nobody else is to be told of ours."""
    memory = torch.zeros(2**20, dtype=torch.uint8).numpy()
    device = torch.device("cuda", torch.cuda.current_device())
    for _ in range(2):
        mapped._lock_pages(memory, device)
    torch.ones(10, device=device).sum().item()


def test_the_next_copy_runs_while_the_gpu_is_busy(arrays: str) -> None:
    with loader_of(arrays, prefetch=4) as loader:
        batches = iter(loader)
        kept = [next(batches) for _ in range(8)]
        kept.clear()  # memory that needs no allocation any more
        time.sleep(0.5)  # the workers are ahead
        torch.cuda.synchronize()
        keep_busy(20)
        begin = time.perf_counter()
        for _ in range(3):
            next(batches)
        seconds = time.perf_counter() - begin
        assert not torch.cuda.current_stream().query(), f"still busy after {seconds:.3f} s"


def test_memory_on_the_gpu_stays_flat(arrays: str) -> None:
    reserved = []
    normalize = {"npy": lambda array: array.float() * 2}
    with loader_of(arrays, on_device=normalize) as loader:
        for _ in range(12):
            for batch in loader:
                (batch[0].sum() + batch[1].sum()).item()
            reserved.append(torch.cuda.memory_reserved())
    assert len(set(reserved[2:])) == 1


def test_two_loaders_at_once(arrays: str) -> None:
    with loader_of(arrays) as one, loader_of(arrays) as two:
        answers = [is_whole(batch) for pair in zip(one, two, strict=True) for batch in pair]
    assert torch.stack(answers).all()


def test_another_gpu_than_the_current_one(arrays: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    before = torch.cuda.current_device()
    other = 1 - before if before < 2 else 0
    with loader_of(arrays, device=f"cuda:{other}") as loader:
        batches = list(loader)
    assert torch.cuda.current_device() == before
    assert all(batch[0].device == torch.device("cuda", other) for batch in batches)
    assert torch.stack([is_whole(batch) for batch in batches]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_normalised_pixels_are_those_of_the_cpu(
    tmp_path: Path, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    url = make_images(tmp_path, 20)
    normalize = ss.Normalize.imagenet(dtype=dtype, memory_format=memory_format)
    data = ss.ShardDataset(url, batch_size=5, parts="jpg", decode={"jpg": ss.RandomResizedCrop(16)})
    expected = list(ss.StreamLoader(data, on_device={"jpg": normalize}))
    with ss.StreamLoader(
        data, num_workers=1, device="cuda", on_device={"jpg": normalize}
    ) as loader:
        for images, other in zip(loader, expected, strict=True):
            assert images.dtype == dtype
            assert images.is_contiguous(memory_format=memory_format)
            torch.testing.assert_close(images.cpu(), other)


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_nvjpeg_gives_what_the_crop_alone_gives(photos: str, crop: Any) -> None:
    pytest.importorskip("torchvision")
    expected = list(ss.StreamLoader(dataset(photos, crop)))
    with ss.StreamLoader(
        dataset(photos, ss.GpuDecode(crop)), num_workers=2, device="cuda"
    ) as loader:
        for (images, classes, keys), other in zip(loader, expected, strict=True):
            assert max(differences([image.cpu() for image in images], other[0])) < 7
            assert torch.equal(classes.cpu(), other[1])
            assert keys == other[2]
        assert loader.fallbacks == TO_CPU


def test_nvjpeg_writes_no_memory_that_is_still_read(photos: str) -> None:
    """Its own stream knows nothing of ours: the same images come out while the GPU is busy."""
    pytest.importorskip("torchvision")
    data = dataset(photos, ss.GpuDecode(ss.CenterCrop(16)), shuffle=False)
    with ss.StreamLoader(data, num_workers=1, device="cuda") as loader:
        expected = [batch[0].cpu() for batch in loader]
        for _ in range(5):
            kept = []
            for images, _, _ in loader:
                keep_busy(0.1)
                kept.append(images + 0)
                del images
            assert same([images.cpu() for images in kept], expected)
