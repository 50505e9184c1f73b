"""torchvision's v2 transforms, of parts and of samples, as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamshard as ss
from tests.stream.data import make_images, same

pytestmark = pytest.mark.slow  # and needs what tools/peers installs


@pytest.fixture(scope="module")
def v2(torchvision: Any) -> Any:
    from torchvision.transforms import v2

    return v2


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_images(tmp_path_factory.mktemp("images"), 60)


def test_a_transform_of_a_part_gets_the_uint8_image(v2: Any, images: str) -> None:
    steps = v2.Compose(
        [v2.Resize((20, 20)), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    )
    dataset = ss.ShardDataset(images, batch_size=12, parts="jpg", decode={"jpg": steps})
    shards, found = ss.open(images), next(iter(ss.StreamLoader(dataset)))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.stack([steps(shards[row]["jpg"]) for row in range(12)]))


def test_its_randomness_is_that_of_the_position(v2: Any, images: str) -> None:
    steps = v2.Compose(
        [
            v2.RandomResizedCrop(16),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4),
            v2.TrivialAugmentWide(),
        ]
    )
    dataset = ss.ShardDataset(
        images, batch_size=6, shuffle=True, parts="jpg", decode={"jpg": steps}
    )
    alone = list(ss.StreamLoader(dataset))
    torch.manual_seed(9)
    assert same(list(ss.StreamLoader(dataset)), alone)
    with ss.StreamLoader(dataset, num_workers=2) as loader:
        iterator = iter(loader)
        head = [next(iterator) for _ in range(3)]
        state = loader.state_dict()
        del iterator
    with ss.StreamLoader(dataset, num_workers=1) as loader:
        loader.load_state_dict(state)
        assert same([*head, *loader], alone)
    assert len({image.numpy().tobytes() for batch in alone for image in batch}) > 50


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_of_samples_keeps_masks_on_their_images(
    v2: Any, tmp_path: Path, workers: int
) -> None:
    from torchvision import tv_tensors

    rng = np.random.default_rng(0)
    with ss.ShardWriter(str(tmp_path / "data")) as writer:
        for number in range(24):
            labels = np.kron(rng.integers(0, 2, (5, 6), np.uint8), np.ones((11, 11), np.uint8))
            gray = np.repeat(labels[..., None] * 255, 3, axis=2)
            writer.write({"__key__": f"{number}", "png": gray, "mask.png": labels})
    joint = v2.Compose(
        [
            v2.RandomResizedCrop(24, scale=(0.3, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(9),
        ]
    )

    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        image, mask = tv_tensors.Image(sample["png"]), tv_tensors.Mask(sample["mask.png"])
        return dict(joint({"image": image, "mask": mask}))

    dataset = ss.ShardDataset(
        tmp_path / "data", batch_size=8, transform=transform,
        decode={"mask.png": ss.Decode(mode="labels")},
    )  # fmt: skip
    with ss.StreamLoader(dataset, num_workers=workers) as loader:
        for batch in loader:
            image, mask = batch["image"], batch["mask"]
            assert (image.shape, mask.shape) == ((8, 3, 24, 24), (8, 24, 24))
            assert (image.dtype, mask.dtype) == (torch.uint8, torch.uint8)
            assert set(mask.unique().tolist()) <= {0, 1}
            certain = (image[:, 0] > 175) | ((image[:, 0] < 80) & (image[:, 0] > 0))
            agree = (image[:, 0] > 127) == (mask == 1)
            # its masks take the pixel before the one in which the centre lies: half a pixel aside
            assert agree[certain].float().mean() > 0.9
