"""Arrays of pixels are pictures: what a crop makes of them, and what of them it touches."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import streamshard as ss
from streamshard.codec.array import view_of
from tests.pack.sources import image_bytes

DECODERS = [
    ss.RandomResizedCrop(9, flip=0.5),
    ss.CenterCrop(8, resize=10),
    ss.CenterCrop(40),
    ss.Resize(12),
    ss.Resize((7, 30)),
    ss.Decode(),
    ss.Decode("L"),
    ss.Decode("RGBA"),
]


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def decoded(decoder: Any, data: bytes | memoryview) -> torch.Tensor:
    result: torch.Tensor = decoder(data, torch.Generator().manual_seed(5))
    return result


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
@pytest.mark.parametrize("size", [(31, 22), (3, 5), (1, 1)])
def test_an_array_gives_what_a_png_of_its_pixels_gives(decoder: Any, size: tuple[int, int]) -> None:
    png = image_bytes(size=size)
    wanted = decoded(decoder, png)
    assert torch.equal(decoded(decoder, npy(pixels(png))), wanted)
    assert torch.equal(decoded(decoder, memoryview(npy(pixels(png)))), wanted)
    assert torch.equal(decoded(decoder, npy(np.asfortranarray(pixels(png)))), wanted)


def test_channels_may_come_first_or_be_one_or_none() -> None:
    array = pixels(image_bytes(size=(31, 22)))
    crop = ss.CenterCrop(8)
    assert torch.equal(
        decoded(crop, npy(array.transpose(2, 0, 1).copy())), decoded(crop, npy(array))
    )
    gray = array[..., 0]
    repeated = decoded(crop, npy(np.repeat(gray[..., None], 3, 2)))
    for one in (gray, gray[..., None], gray[None]):
        assert torch.equal(decoded(crop, npy(one.copy())), repeated)


def test_labels_keep_their_numbers_in_any_integer_that_has_room() -> None:
    labels = np.arange(42).reshape(6, 7)
    for dtype in (np.uint8, np.int16, np.int64):
        got = decoded(ss.Decode("labels"), npy(labels.astype(dtype)))
        assert (got.dtype, got.tolist()) == (torch.uint8, labels.tolist())
    got = decoded(ss.Decode("labels32"), npy(labels + 70_000))
    assert (got.dtype, got.tolist()) == (torch.int32, (labels + 70_000).tolist())


@pytest.mark.parametrize(
    ("array", "mode", "what"),
    [
        (np.zeros((5, 5, 2), np.uint8), "RGB", "is no picture"),
        (np.zeros(4, np.uint8), "RGB", "is no picture"),
        (np.zeros((4, 5, 3), np.float32), "RGB", "is no picture"),
        (np.zeros((4, 5, 3), np.int32), "RGB", "int32; uint8 is wanted"),
        (np.zeros((4, 5, 3), np.uint8), "labels", "one channel"),
        (np.full((4, 5), 256), "labels", "label is 256, above 255"),
        (np.full((4, 5), -1), "labels", "label is -1"),
        (np.full((4, 5), 2**31), "labels32", "label is 2147483648"),
    ],
)
def test_what_is_no_picture_is_refused(array: NDArray[Any], mode: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        decoded(ss.Decode(mode), npy(array))


@pytest.mark.parametrize("rest", [b"", b"\x01\x00\x05\x00{oops", b"\x09\x00" * 9])
def test_a_damaged_header_is_refused(rest: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a (whole )?\.npy"):
        view_of(b"\x93NUMPY" + rest)


def test_a_cut_file_and_one_of_objects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not a whole \.npy"):
        view_of(npy(np.zeros((4, 5, 3), np.uint8))[:-1])
    file = io.BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="objects"):
        view_of(file.getvalue())
