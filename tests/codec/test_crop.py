from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from streamshard.codec.base import Form
from streamshard.codec.crop import CenterCrop, RandomResizedCrop, Resize, shorter_side
from streamshard.codec.framing import Box, Framing, framed
from streamshard.codec.picture import opened
from streamshard.codec.pixels import Mode
from streamshard.errors import UsageError
from tests.codec.pictures import by_pillow, difference, encoded, picture

FULL_SIZES = [(375, 500), (500, 375), (231, 307), (600, 800)]
TARGETS = [(224, 224), (64, 64), (100, 50), (7, 9)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cut(data: bytes, full: tuple[int, int], box: Box, size: tuple[int, int]) -> torch.Tensor:
    picture = opened(data)
    assert picture.size == full
    return framed(picture, Framing(box, size), "RGB")


@cache
def photograph(size: tuple[int, int], format: str) -> bytes:
    options = {"compress_level": 1} if format == "PNG" else {"quality": 92}
    return encoded(picture(*size), format, **options)


def reference(data: bytes, box: Box, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole picture decoded, then cropped and resized with antialiasing, by Pillow."""
    top, left, height, width = map(int, box)
    image = Image.fromarray(by_pillow(data)[top : top + height, left : left + width])
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


class TestCut:
    """A box of the picture, as if the whole had been decoded first."""

    @pytest.mark.parametrize("full", FULL_SIZES)
    @pytest.mark.parametrize("size", TARGETS)
    def test_a_png_gives_what_pillow_gives(
        self, full: tuple[int, int], size: tuple[int, int]
    ) -> None:
        data = photograph(full, "PNG")
        for box in self.boxes(full):
            found = cut(data, full, box, size)
            assert (found.dtype, found.shape) == (torch.uint8, (3, *size))
            assert difference(found.permute(1, 2, 0), reference(data, box, size)) < 0.5

    @pytest.mark.parametrize("full", FULL_SIZES)
    @pytest.mark.parametrize("size", TARGETS)
    def test_a_jpeg_decoded_small_gives_nearly_that(
        self, full: tuple[int, int], size: tuple[int, int]
    ) -> None:
        """Box edges fall on whole pixels of the reduced picture: up to half a pixel aside."""
        data = photograph(full, "JPEG")
        for box in self.boxes(full):
            found = cut(data, full, box, size)
            assert difference(found.permute(1, 2, 0), reference(data, box, size)) < 6

    @staticmethod
    def boxes(full: tuple[int, int]) -> list[Box]:
        height, width = full
        return [
            Box(0, 0, height, width),
            Box(10, 20, height // 2, width // 3),
            Box(height // 3, width // 3, 40, 50),
            Box(height - 1, width - 1, 1, 1),
        ]

    def test_a_box_of_the_targets_size_is_copied(self) -> None:
        pixels = picture(60, 80)
        found = cut(encoded(pixels, "PNG"), (60, 80), Box(7, 9, 20, 30), (20, 30))
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), pixels[7:27, 9:39])


class TestEverySize:
    """The result has the promised size and type, whatever the picture's."""

    @pytest.mark.parametrize("full", [(1, 1), (1, 300), (300, 1), (2, 700), (5, 3), (33, 31)])
    @pytest.mark.parametrize("size", [1, 8, 64, (1, 5), (3, 7)])
    @pytest.mark.parametrize("format", ["PNG", "JPEG"])
    def test_every_crop_has_its_form(
        self, full: tuple[int, int], size: int | tuple[int, int], format: str
    ) -> None:
        data = encoded(picture(*full), format)
        pair = (size, size) if isinstance(size, int) else size
        crops: list[Any] = [CenterCrop(size), CenterCrop(size, resize=10), RandomResizedCrop(size)]
        crops += [RandomResizedCrop(size, flip=1), Resize(pair)]
        for crop in crops:
            assert crop.form == Form(torch.uint8, (3, *pair))
            for seed in range(3):
                found = crop(data, seeded(seed))
                assert (found.dtype, found.shape) == (torch.uint8, (3, *pair))

    @pytest.mark.parametrize("full", [(1, 1), (1, 300), (300, 1), (375, 500), (500, 375)])
    def test_resize_by_the_shorter_side_keeps_the_proportions(self, full: tuple[int, int]) -> None:
        found = Resize(16)(encoded(picture(*full), "PNG"))
        assert found.shape[1:] == shorter_side(full, 16)
        assert min(found.shape[1:]) == 16
        assert max(found.shape[1:]) == 16 * max(full) // min(full)
        assert Resize(16).form is None

    def test_resize_gives_what_pillow_gives(self) -> None:
        data = encoded(picture(375, 500), "PNG")
        found = Resize((50, 60))(data).permute(1, 2, 0)
        assert difference(found, reference(data, Box(0, 0, 375, 500), (50, 60))) < 0.5


class TestCenterCrop:
    """The middle, as the usual evaluation has it."""

    @pytest.mark.parametrize("full", FULL_SIZES)
    @pytest.mark.parametrize("format", ["PNG", "JPEG"])
    def test_it_is_resize_then_crop_up_to_half_a_pixel(
        self, full: tuple[int, int], format: str
    ) -> None:
        data = photograph(full, format)
        height, width = shorter_side(full, 256)
        whole = reference(data, Box(0, 0, *full), (height, width))
        top, left = (height - 224) // 2, (width - 224) // 2
        expected = whole[top : top + 224, left : left + 224]
        found = CenterCrop(224, resize=256)(data).permute(1, 2, 0)
        assert difference(found, expected) < 4

    @pytest.mark.parametrize("full", [(60, 80), (80, 60), (61, 81), (40, 40)])
    def test_without_resize_the_pixels_of_the_middle_stay(self, full: tuple[int, int]) -> None:
        pixels = picture(*full)
        found = CenterCrop(40)(encoded(pixels, "PNG")).permute(1, 2, 0).numpy()
        tops, lefts = ({(n - 40) // 2, (n - 39) // 2} for n in full)  # odd margins: either
        assert any(
            np.array_equal(found, pixels[top : top + 40, left : left + 40])
            for top in tops
            for left in lefts
        )

    def test_a_picture_smaller_than_the_crop_is_enlarged_to_cover_it(self) -> None:
        data = encoded(picture(20, 30), "PNG")
        found = CenterCrop(40)(data).permute(1, 2, 0)
        assert difference(found, reference(data, Box(0, 5, 20, 20), (40, 40))) < 0.5

    def test_it_draws_nothing(self) -> None:
        data, generator = encoded(picture(50, 50), "JPEG"), seeded(1)
        state = generator.get_state()
        assert torch.equal(CenterCrop(8)(data, generator), CenterCrop(8)(data))
        assert torch.equal(generator.get_state(), state)


class TestRandomness:
    """All of it is the generator's, and as much for every picture."""

    def test_the_same_seed_gives_the_same_crop_and_another_another(self) -> None:
        data, crop = encoded(picture(200, 300), "JPEG"), RandomResizedCrop(32, flip=0.5)
        torch.manual_seed(5)
        first = [crop(data, seeded(seed)) for seed in range(20)]
        torch.manual_seed(6)
        again = [crop(data, seeded(seed)) for seed in range(20)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not any(torch.equal(a, b) for a, b in pairwise(first))

    def test_every_picture_takes_as_many_draws(self) -> None:
        states = []
        for full in [(200, 300), (1, 300), (300, 1)]:
            generator = seeded(3)
            RandomResizedCrop(8)(encoded(picture(*full), "PNG"), generator)
            states.append(generator.get_state())
        assert all(torch.equal(state, states[0]) for state in states)

    def test_a_flip_is_the_mirror_image_of_the_same_crop(self) -> None:
        data = encoded(picture(200, 300), "PNG")
        for seed in range(10):
            plain = RandomResizedCrop(32)(data, seeded(seed))
            never, always = (
                RandomResizedCrop(32, flip=flip)(data, seeded(seed)) for flip in (0.0, 1.0)
            )
            assert torch.equal(plain, never)
            assert torch.equal(always, plain.flip(2))
            assert not torch.equal(always, plain)

    def test_half_of_the_pictures_are_flipped(self) -> None:
        data, crop = encoded(picture(40, 40), "PNG"), RandomResizedCrop(8, flip=0.5)
        flips = sum(
            not torch.equal(crop(data, seeded(seed)), RandomResizedCrop(8)(data, seeded(seed)))
            for seed in range(400)
        )
        assert 160 <= flips <= 240  # 4 standard deviations


@cache
def coordinates() -> bytes:
    """A picture whose red is the row and whose green is the column."""
    y, x = np.mgrid[0:256, 0:256].astype(np.uint8)
    return encoded(np.stack([y, x, y], axis=-1), "PNG", compress_level=1)


def drawn_boxes(crop: RandomResizedCrop, count: int) -> NDArray[np.float64]:
    """Top, left, height and width of crops, read off a picture that shows its coordinates."""
    boxes = []
    for seed in range(count):
        found = crop(coordinates(), seeded(seed)).to(torch.float64)
        last = found.shape[1] - 1
        centers = [found[0].mean(), found[1].mean()]
        steps = [
            (found[0, -3].mean() - found[0, 2].mean()) / (last - 4),
            (found[1, :, -3].mean() - found[1, :, 2].mean()) / (last - 4),
        ]
        sides = [float(step) * (last + 1) for step in steps]
        boxes.append([float(c) + 0.5 - s / 2 for c, s in zip(centers, sides, strict=True)] + sides)
    return np.array(boxes)


def distance(values: NDArray[np.float64], cdf: Callable[[Any], Any]) -> float:
    """Kolmogorov's: how far the values are from the distribution that they should have."""
    ranks = np.arange(1, len(values) + 1) / len(values)
    return float(np.abs(cdf(np.sort(values)) - ranks).max())


# Every draw fits into a square picture, so none is repeated.
CROP = RandomResizedCrop(64, scale=(0.05, 0.2), ratio=(0.25, 4.0))


@pytest.fixture(scope="module")
def boxes() -> NDArray[np.float64]:
    return drawn_boxes(CROP, 1500)


class TestDistribution:
    """Area uniform, ratio log-uniform, place uniform: Szegedy et al.'s definition."""

    # 1,500 draws stay within 0.042 in 99 of 100 cases; the rest is for reading off the pixels.
    BOUND = 0.055

    def test_the_area_is_uniform(self, boxes: NDArray[np.float64]) -> None:
        areas = boxes[:, 2] * boxes[:, 3] / 256**2
        assert distance(areas, lambda a: np.clip((a - 0.05) / 0.15, 0, 1)) < self.BOUND

    def test_the_ratio_is_log_uniform(self, boxes: NDArray[np.float64]) -> None:
        ratios = boxes[:, 3] / boxes[:, 2]
        logs = np.log(ratios)
        assert distance(logs, lambda a: np.clip(a / math.log(16) + 0.5, 0, 1)) < self.BOUND

    @pytest.mark.parametrize("axis", [0, 1])
    def test_the_place_is_uniform(self, boxes: NDArray[np.float64], axis: int) -> None:
        places = boxes[:, axis] / (256 - boxes[:, 2 + axis])
        assert distance(places, lambda a: np.clip(a, 0, 1)) < self.BOUND

    def test_area_and_ratio_are_independent(self, boxes: NDArray[np.float64]) -> None:
        areas = boxes[:, 2] * boxes[:, 3]
        logs = np.log(boxes[:, 3] / boxes[:, 2])
        assert abs(np.corrcoef(areas, logs)[0, 1]) < 0.1

    def test_the_flip_is_independent_of_the_box(self, boxes: NDArray[np.float64]) -> None:
        flipping = replace(CROP, flip=0.5)
        flips = []
        for seed in range(400):
            columns = flipping(coordinates(), seeded(seed))[1].double().mean(0)
            flips.append(bool(columns[0] > columns[-1]))
        for values in (*boxes[:400].T, boxes[:400, 2] * boxes[:400, 3]):
            assert abs(np.corrcoef(values, flips)[0, 1]) < 0.2  # 4 standard deviations

    def test_where_no_draw_fits_it_is_the_largest_middle_within_the_ratios(self) -> None:
        pixels = picture(30, 300)
        found = RandomResizedCrop((30, 40), scale=(0.9, 1.0))(encoded(pixels, "PNG"), seeded(0))
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), pixels[:, 130:170])
        tall = picture(300, 30)
        found = RandomResizedCrop((40, 30), scale=(0.9, 1.0))(encoded(tall, "PNG"), seeded(0))
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), tall[130:170])


class TestRefused:
    """A crop that can't be made is refused when it is asked for, not at the first picture."""

    @pytest.mark.parametrize("kind", [RandomResizedCrop, CenterCrop, Resize])
    @pytest.mark.parametrize("size", [0, -1, (0, 5), (5, -1)])
    def test_a_size_below_one_pixel(self, kind: Any, size: Any) -> None:
        with pytest.raises(UsageError, match="at least 1 pixel"):
            kind(size)

    @pytest.mark.parametrize(
        "options",
        [
            {"scale": (0.5, 0.1)},
            {"scale": (-0.1, 1.0)},
            {"scale": (0.0, 0.0)},
            {"ratio": (4 / 3, 3 / 4)},
            {"ratio": (0.0, 1.0)},
            {"ratio": (-1.0, 1.0)},
            {"flip": 1.5},
            {"flip": -0.5},
        ],
        ids=str,
    )
    def test_ranges_that_hold_nothing(self, options: Any) -> None:
        with pytest.raises(UsageError):
            RandomResizedCrop(8, **options)

    @pytest.mark.parametrize("resize", [0, -4])
    def test_a_resize_below_one_pixel(self, resize: int) -> None:
        with pytest.raises(UsageError):
            CenterCrop(8, resize=resize)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "labels"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(60, 80), (31, 17), (1, 1)])
def test_a_crop_written_to_its_row_is_the_crop(
    mode: Mode, memory_format: torch.memory_format, size: tuple[int, int]
) -> None:
    crop = RandomResizedCrop(size, flip=0.3, mode=mode, memory_format=memory_format)
    data = encoded(picture(60, 80)[..., 0] if mode == "labels" else picture(60, 80), "PNG")
    written = 0
    for seed in range(12):
        expected = crop(data, torch.Generator().manual_seed(seed))
        rows = torch.full((3, *crop.form.shape), 7, dtype=torch.uint8)
        if crop.form.channels_last:
            rows = rows.contiguous(memory_format=torch.channels_last)
        found = crop(data, torch.Generator().manual_seed(seed), out=rows[1])
        assert torch.equal(found, expected)
        is_row = found.data_ptr() == rows[1].data_ptr()
        assert not is_row or torch.equal(rows[1], expected)
        assert (rows[0] == 7).all()
        assert (rows[2] == 7).all()
        written += is_row
    if size == (31, 17) and mode != "L":  # else strides don't tell how it lies
        assert (written > 0) == (crop.form.channels_last and mode != "labels")


@pytest.mark.parametrize("channels_first", [False, True])
def test_all_of_an_array_is_written_to_its_row(channels_first: bool) -> None:
    array = picture(80, 80).transpose(2, 0, 1) if channels_first else picture(80, 80)
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array))
    crop = RandomResizedCrop(64, scale=(1, 1), ratio=(1, 1), memory_format=torch.channels_last)
    rows = torch.zeros(2, 3, 64, 64, dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    expected = crop(file.getvalue(), torch.Generator())
    assert torch.equal(crop(file.getvalue(), torch.Generator(), out=rows[1]), expected)
