"""Images that are decoded where they arrive are those that the crop alone gives."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

import streamshard as ss
from streamshard.codec import framing
from streamshard.codec.image import ImageCodec
from streamshard.errors import SampleError, UsageError
from streamshard.stream import device, encoded, readers
from tests.codec.pictures import encoded as file_of
from tests.codec.pictures import picture
from tests.stream.data import same
from tests.stream.late import LateSide

COUNT, BATCH = 36, 6
ODD = {3: "CMYK", 10: "turned", 11: "png", 20: "gray", 30: "turned"}  # what is no usual JPEG
TO_CPU = 4  # gray ones a GPU can do
CROPS = {
    "random": ss.RandomResizedCrop((20, 24), flip=0.5),
    "center": ss.CenterCrop(16, resize=20),
    "whole": ss.Resize((18, 12)),
    "ragged": ss.Resize(18),
    "channels last": ss.CenterCrop(16, memory_format=torch.channels_last),
}


def host_decode(files: list[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
    """The twin of nvJPEG: all files at full size, or an error that does not say of which."""
    try:
        pixels = [simplejpeg.decode_jpeg(file.numpy().tobytes(), "RGB") for file in files]
    except ValueError:
        raise RuntimeError("Failed to decode batch: 6") from None
    return [torch.from_numpy(each).permute(2, 0, 1).contiguous().to(device) for each in pixels]


def photograph(number: int) -> bytes:
    size = 40 + number % 5 * 6, 64 - number % 7 * 3
    image = Image.fromarray(picture(*size))
    kind = ODD.get(number)
    if kind == "CMYK":
        return file_of(image.convert("CMYK"), "JPEG", quality=95)
    if kind == "png":
        return file_of(image, "PNG")
    exif = image.getexif()
    exif[0x0112] = 6 if kind == "turned" else 1
    return file_of(image.convert("L") if kind == "gray" else image, "JPEG", quality=95, exif=exif)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("photos") / "data"
    with ss.ShardWriter(folder, shard_size="20KB") as writer:
        for number in range(COUNT):
            writer.write({"__key__": f"{number:03d}", "jpg": photograph(number), "cls": number})
    return str(folder)


def dataset(url: Any, decoder: Any, **options: Any) -> ss.ShardDataset:
    defaults: dict[str, Any] = {
        "batch_size": BATCH, "shuffle": True, "seed": 4, "parts": ("jpg", "cls", "__key__"),
    }  # fmt: skip
    return ss.ShardDataset(url, decode={"jpg": decoder}, **{**defaults, **options})


def on_arrival(crop: Any, decode: Any = host_decode) -> ss.GpuDecode:
    return ss.GpuDecode(crop, decode=decode)


def differences(images: Any, others: Any) -> list[float]:
    """The mean difference of each two images of the same place, in levels of 255."""
    return [
        (one.int() - other.int()).abs().float().mean().item()
        for one, other in zip(images, others, strict=True)
    ]


@pytest.fixture(params=["here", "workers", "late"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a loader: in this process, with a ring, and on a device that is late."""
    if request.param == "late":
        monkeypatch.setitem(device._SIDES, "meta", lambda _: SIDE)
    workers: dict[str, Any] = {"num_workers": 2, "prefetch": 1}
    return {
        "here": {},
        "workers": {**workers, "reuse": True},
        "late": {**workers, "device": "meta"},
    }[request.param]


SIDE = LateSide()


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_images_are_those_of_the_crop_alone(photos: str, crop: Any, how: dict[str, Any]) -> None:
    """In this process and from a ring whose slots are written again; rectangle, flip and all."""
    expected = list(ss.StreamLoader(dataset(photos, crop)))
    with ss.StreamLoader(dataset(photos, on_arrival(crop)), **how) as loader:
        for (images, classes, keys), other in zip(loader, expected, strict=True):
            SIDE.used()
            assert type(images) is type(other[0])
            assert [image.shape for image in images] == [image.shape for image in other[0]]
            assert {image.dtype for image in images} == {torch.uint8}
            if isinstance(images, torch.Tensor):
                assert images.stride() == other[0].stride()
            assert torch.equal(classes, other[1])
            assert keys == other[2]
            # Decoded at full size here and at a smaller scale there.
            assert max(differences(images, other[0])) < 7
        assert loader.fallbacks == TO_CPU
        assert len(list(loader)) == len(expected)
        assert loader.fallbacks == TO_CPU, "of the pass"


def test_another_rectangle_would_show(photos: str) -> None:
    """The control of the bound above: crops of another seed, sample by sample."""
    one, two = (
        {
            key: image
            for images, _, keys in ss.StreamLoader(
                dataset(photos, decoder, shuffle=False, seed=seed)
            )
            for key, image in zip(keys, images, strict=True)
        }
        for decoder, seed in ((CROPS["random"], 4), (on_arrival(CROPS["random"]), 5))
    )
    off = differences(one.values(), two.values())
    assert sum(each > 7 for each in off) > 0.9 * COUNT


def test_pixels_of_a_whole_image_are_those_of_decoding_it(photos: str) -> None:
    """To the last bit, where nothing is resized."""
    crop = ss.CenterCrop(16)
    expected = list(ss.StreamLoader(dataset(photos, crop)))
    found = list(ss.StreamLoader(dataset(photos, on_arrival(crop))))
    assert same([tuple(batch) for batch in found], [tuple(batch) for batch in expected])


def test_what_is_resized_is_rounded(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's kernel for uint8 does it, which knows weights to fewer bits; a GPU has none."""
    crop = ss.Resize((70, 80))  # larger than any: a CPU decodes at full size too
    expected = list(ss.StreamLoader(dataset(photos, crop)))
    monkeypatch.setattr(framing, "_WITH_UINT8", set())
    for batch, other in zip(
        ss.StreamLoader(dataset(photos, on_arrival(crop))), expected, strict=True
    ):
        off = (batch[0].int() - other[0].int()).abs().float()
        assert off.max() <= 1
        assert off.mean() < 0.25, "cutting the fraction off gives a half"


@pytest.mark.parametrize("parts", [None, "jpg", ("cls", "jpg")])
def test_batches_have_their_usual_form_and_are_worked_on_further(photos: str, parts: Any) -> None:
    options: dict[str, Any] = {"parts": parts, "tail": "exact", "batch_size": 10}
    normalize = ss.Normalize.imagenet()
    crop = ss.CenterCrop(16)
    expected = ss.StreamLoader(dataset(photos, crop, **options), on_device={"jpg": normalize})
    loader = ss.StreamLoader(
        dataset(photos, on_arrival(crop), **options), on_device={"jpg": normalize}
    )
    for batch, other in zip(loader, expected, strict=True):
        assert type(batch) is type(other)
        if parts is None:
            assert same(dict(batch), dict(other))
            assert same(dict(batch.clone()), dict(other))
        else:
            assert same(batch if parts == "jpg" else tuple(batch),
                        other if parts == "jpg" else tuple(other))  # fmt: skip


def test_a_rank_without_a_share_gets_an_empty_batch(photos: str) -> None:
    world = ss.World(1, 2)
    for crop, empty in ((CROPS["random"], (0, 3, 20, 24)), (CROPS["ragged"], None)):
        chosen = dataset(photos, on_arrival(crop), world=world, tail="exact")[:1]
        ((images, classes, keys),) = ss.StreamLoader(chosen)
        assert images == [] if empty is None else images.shape == empty
        assert (len(classes), keys) == (0, [])


def test_a_resumed_run_cuts_the_same_rectangles(photos: str) -> None:
    data = dataset(photos, on_arrival(CROPS["random"]))
    whole = list(ss.StreamLoader(data))
    loader = ss.StreamLoader(data)
    iterator = iter(loader)
    next(iterator), next(iterator)
    with ss.StreamLoader(data, num_workers=1) as other:
        other.load_state_dict(loader.state_dict())
        rest = list(other)
    assert same([tuple(batch) for batch in rest], [tuple(batch) for batch in whole[2:]])


def test_a_file_that_fails_costs_its_batch_nothing_but_time(photos: str) -> None:
    """nvJPEG says of a batch that it can't; which file it was is found by trying each."""
    asked: list[int] = []

    def fails_on_some(files: list[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
        asked.append(len(files))
        if any(len(file) % 7 == 0 for file in files):
            raise RuntimeError("Unknown chroma subsampling")
        return host_decode(files, device)

    crop = ss.CenterCrop(16)
    plain = [photograph(number) for number in range(COUNT) if ODD.get(number, "gray") == "gray"]
    fail = sum(len(data) % 7 == 0 for data in plain)
    assert 0 < fail < COUNT // 2
    expected = list(ss.StreamLoader(dataset(photos, crop)))
    loader = ss.StreamLoader(dataset(photos, on_arrival(crop, fails_on_some)))
    assert same([tuple(batch) for batch in loader], [tuple(batch) for batch in expected])
    assert loader.fallbacks == TO_CPU + fail
    assert asked.count(1) > fail


def test_what_comes_back_in_another_size_is_decoded_again(photos: str) -> None:
    def halved(files: list[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
        return [image[:, ::2] for image in host_decode(files, device)]

    crop = ss.CenterCrop(16)
    expected = list(ss.StreamLoader(dataset(photos, crop)))
    loader = ss.StreamLoader(dataset(photos, on_arrival(crop, halved)))
    assert same([tuple(batch) for batch in loader], [tuple(batch) for batch in expected])
    assert loader.fallbacks == COUNT


def test_memory_that_runs_out_is_not_taken_for_a_bad_file(photos: str) -> None:
    asked: list[int] = []

    def greedy(files: list[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
        asked.append(len(files))
        raise torch.OutOfMemoryError("no memory")

    loader = ss.StreamLoader(dataset(photos, on_arrival(ss.CenterCrop(16), greedy)))
    with pytest.raises(torch.OutOfMemoryError):
        next(iter(loader))
    assert len(asked) == 1


def test_large_images_are_decoded_a_few_at_a_time(
    photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(files: list[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
        decoded = host_decode(files, device)
        asked.append(sum(image.numel() for image in decoded))
        return decoded

    expected = list(ss.StreamLoader(dataset(photos, on_arrival(ss.CenterCrop(16)))))
    monkeypatch.setattr(encoded, "_AT_ONCE", 20_000)
    found = list(ss.StreamLoader(dataset(photos, on_arrival(ss.CenterCrop(16), counted))))
    assert same([tuple(batch) for batch in found], [tuple(batch) for batch in expected])
    assert max(asked) <= 20_000 < 2 * max(asked)


class TestDamaged:
    """What a GPU would fill with grey is refused as it is without one."""

    @pytest.fixture
    def damaged(self, tmp_path: Path) -> str:
        with ss.ShardWriter(tmp_path / "data") as writer:
            for number in range(8):
                data = file_of(picture(40, 40), "JPEG")
                data = data[: len(data) // 2] if number == 5 else data
                writer.write({"__key__": f"{number}", "bin": data, "cls": number})
        return str(tmp_path / "data")

    def decoding(self, url: str, **options: Any) -> ss.StreamLoader:
        # Packed as what it is not, or the packer would have refused it.
        source = ss.ShardDataset(url, batch_size=4, parts=("bin", "cls"), **options)
        return ss.StreamLoader(source)

    def test_a_cut_file_is_named_or_skipped(
        self, damaged: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        of = readers.codec_of  # type: ignore[attr-defined]
        monkeypatch.setattr(
            readers, "codec_of", lambda suffix: ImageCodec("jpg") if suffix == "bin" else of(suffix)
        )
        decode = {"bin": on_arrival(ss.CenterCrop(16))}
        with pytest.raises(SampleError, match=r"shard-000000.tar: key 5, part bin at offset \d+"):
            list(self.decoding(damaged, decode=decode))
        loader = self.decoding(damaged, decode=decode, on_error="skip")
        found = [(len(images), classes.tolist()) for images, classes in loader]
        assert found == [(4, [0, 1, 2, 3]), (3, [4, 6, 7])]
        assert (loader.skipped, loader.fallbacks) == (1, 0)

    def test_one_that_only_decoding_finds_is_named(self, photos: str) -> None:
        """A file whose marks are all there, and that neither a GPU nor a CPU can do."""

        def never(files: list[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
            raise RuntimeError("Failed to decode batch: 6")

        loader = ss.StreamLoader(dataset(photos, on_arrival(ss.CenterCrop(16), never)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoded, "opened", no_pixels)
            with pytest.raises(SampleError, match=r"key \d+, part jpg at offset \d+: not a whole"):
                list(loader)


def no_pixels(data: bytes) -> Any:
    raise ValueError("not a whole JPEG (broken)")


class TestRefused:
    """What can't be decoded on a GPU is refused at once, with what to do instead."""

    def test_a_device_that_is_no_gpu(self, photos: str) -> None:
        data = dataset(photos, ss.GpuDecode(ss.CenterCrop(16)))
        for where, says in ((None, "no device"), ("cpu", "'cpu'"), ("meta", "'meta'")):
            with pytest.raises(UsageError, match=f"go to {says}: .*device='cuda'"):
                ss.StreamLoader(data, device=where)

    def test_an_environment_without_torchvision(
        self, photos: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        data = dataset(photos, ss.GpuDecode(ss.CenterCrop(16)))
        with pytest.raises(UsageError, match=r"pip install 'streamshard\[gpu\]'"):
            ss.StreamLoader(data, device="cuda")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        ss.StreamLoader(data, device="cuda")

    def test_whoever_takes_batches_nowhere(self, photos: str) -> None:
        data = dataset(photos, on_arrival(ss.CenterCrop(16)))
        with pytest.raises(UsageError, match="StreamLoader"):
            next(iter(data))
        with pytest.raises(UsageError, match="StreamLoader"):
            next(iter(torch.utils.data.DataLoader(data, batch_size=None)))

    def test_what_is_no_crop_and_no_image(self, photos: str) -> None:
        with pytest.raises(UsageError, match="RandomResizedCrop"):
            ss.GpuDecode(224)  # type: ignore[arg-type]
        with pytest.raises(
            UsageError, match=r"ss.GpuDecode is for images; part 'cls' is of codec int"
        ):
            ss.ShardDataset(photos, batch_size=2, decode={"cls": on_arrival(CROPS["random"])})

    def test_a_transform_that_would_want_the_image(self, photos: str) -> None:
        with pytest.raises(UsageError, match="on_device"):
            dataset(photos, on_arrival(CROPS["random"]), transform=dict)

    def test_sources_that_differ(self, photos: str) -> None:
        here = dataset(photos, on_arrival(CROPS["random"]))
        there = dataset(photos, CROPS["random"])
        for pair in ({"a": here, "b": there}, {"b": there, "a": here}):
            with pytest.raises(UsageError, match="give all the same"):
                ss.ShardDataset(ss.Mixture(pair), batch_size=4, parts=("jpg", "cls"))


def test_sources_that_agree_are_mixed(photos: str) -> None:
    def mixed(decoder: Any) -> list[Any]:
        sources = {"a": dataset(photos, decoder)[:20], "b": dataset(photos, decoder)[20:]}
        data = ss.ShardDataset(
            ss.Mixture(sources), batch_size=4, seed=2, parts=("jpg", "__source__", "__key__")
        )
        return [tuple(batch) for batch in ss.StreamLoader(data)]

    assert same(mixed(on_arrival(ss.CenterCrop(16))), mixed(ss.CenterCrop(16)))


def test_only_labels_cross_to_the_device(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files stay where they are read; of the block go labels, and what a CPU had to decode."""
    copied: list[int] = []

    class Counting(LateSide):
        def copy(self, memory: torch.Tensor) -> torch.Tensor:
            copied.append(len(memory))
            return super().copy(memory)

    monkeypatch.setitem(device._SIDES, "meta", lambda _: Counting())
    crop = ss.CenterCrop(16)
    list(ss.StreamLoader(dataset(photos, on_arrival(crop)), num_workers=1, device="meta"))
    assert sum(copied) == COUNT // BATCH * 64 + TO_CPU * 3 * 16 * 16


def test_the_file_is_what_pillow_reads() -> None:
    """The pictures above are what they are said to be."""
    kinds = {number: Image.open(io.BytesIO(photograph(number))) for number in ODD}
    assert kinds[3].mode == "CMYK"
    assert kinds[11].format == "PNG"
    assert kinds[20].mode == "L"
    assert kinds[10].getexif()[0x0112] == 6
    assert np.ptp([image.size[0] for image in kinds.values()]) > 0
