"""What is decoded straight into its row is what is decoded first and stacked then, errors too."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamshard as ss
from streamshard.codec.base import Form
from streamshard.errors import SampleError, UsageError
from streamshard.stream import readers
from tests.codec.pictures import encoded, picture
from tests.stream.data import same

COUNT = 24
BAD = {5: "jpg", 9: "json", 14: "jpg"}  # what only decoding finds out


def image(number: int) -> bytes:
    pixels = picture(60, 50 + number)
    if BAD.get(number) != "jpg":
        return encoded(pixels, "JPEG", quality=90)
    data = encoded(pixels, "PNG")
    body = b"IDAT" + b"no deflated data"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[: data.index(b"IDAT") - 4] + chunk + data[data.index(b"IEND") - 4 :]


def pack(folder: Path, numbers: list[int]) -> str:
    with ss.ShardWriter(folder, shard_size="40KB") as writer:
        for number in numbers:
            writer.write({
                "__key__": f"{number:03d}",
                "jpg": image(number),
                "npy": np.full((40, 30), number, np.float32),
                "json": {"number": number},
            })  # fmt: skip
    return str(folder)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack(tmp_path_factory.mktemp("good") / "own", [n for n in range(COUNT) if n not in BAD])


def dataset(url: Any, **options: Any) -> ss.ShardDataset:
    decode = {"jpg": ss.RandomResizedCrop(40, flip=0.5), "json": number_of}
    parts = options.pop("parts", ("jpg", "npy", "json", "__key__"))
    return ss.ShardDataset(
        url, batch_size=6, parts=parts, **{"decode": decode, "tail": "pad", **options}
    )


def number_of(value: Any) -> int:
    if BAD.get(value["number"]) == "json":
        raise ValueError("refused")
    return int(value["number"])


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From here on, samples are decoded first and stacked then."""
    return lambda: monkeypatch.setattr(readers, "WORTH_A_ROW", 1 << 40)


def test_batches_are_those_that_are_stacked(good: str, stacked: Callable[[], None]) -> None:
    lasts = ss.RandomResizedCrop(40, memory_format=torch.channels_last)
    cases: list[dict[str, Any]] = [{}, {"decode": {"jpg": lasts}, "parts": ("jpg", "npy")}]
    written = [list(dataset(good, shuffle=True, **case)) for case in cases]
    stacked()
    for one, case in zip(written, cases, strict=True):
        other = list(dataset(good, shuffle=True, **case))
        assert same(one, other)
        assert [a[0].stride() for a in one] == [a[0].stride() for a in other]


class Darker(ss.RandomResizedCrop):
    """A crop with a call of its own, as before crops were written to their rows."""

    def __call__(self, data: Any, generator: torch.Generator) -> torch.Tensor:  # type: ignore[override]
        return super().__call__(data, generator) // 2


def test_a_subclass_is_called_as_it_is(good: str) -> None:
    crops = [kind(40, memory_format=torch.channels_last) for kind in (ss.RandomResizedCrop, Darker)]
    plain, darker = (list(dataset(good, decode={"jpg": crop}, parts="jpg")) for crop in crops)
    for one, other in zip(plain, darker, strict=True):
        assert torch.equal(one // 2, other)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack(tmp_path_factory.mktemp("bad") / "own", [*range(COUNT)])


def test_what_can_not_be_decoded_is_left_out_wherever_it_lies(
    bad: str, stacked: Callable[[], None]
) -> None:
    one = list(dataset(bad, on_error="skip"))
    keys = [key for batch in one for key in batch[3]]
    assert keys == [f"{number:03d}" for number in range(COUNT) if number not in BAD]
    assert [len(batch.skipped) for batch in one] == [1, 1, 1, 0]
    assert all((batch[1][:, 0, 0] == batch[2]).all() for batch in one), "rows belong together"
    stacked()
    other = list(dataset(bad, on_error="skip"))
    assert same(one, other)
    assert [batch.skipped for batch in one] == [batch.skipped for batch in other]


def test_the_first_error_of_a_batch_is_raised(bad: str) -> None:
    batches = iter(dataset(bad))
    with pytest.raises(SampleError, match="key 005, part jpg"):
        next(batches)


class Wrong:
    """A decoder of bytes that does not keep its word."""

    takes_bytes = True
    form = Form(torch.float32, (40, 40))

    def __call__(self, data: bytes, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(40, 41)


def test_a_value_of_another_form_is_refused(good: str) -> None:
    with pytest.raises(UsageError, match=r"part npy: a torch\.float32 of shape \(40, 41\) among"):
        next(iter(dataset(good, parts="npy", decode={"npy": Wrong()})))
