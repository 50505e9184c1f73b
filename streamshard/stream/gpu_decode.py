"""`GpuDecode`: JPEGs are decoded where their batch is used, and only their bytes travel there."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from streamshard.codec.base import Form
from streamshard.codec.framing import Box, Framing
from streamshard.codec.jpeg import is_plain_jpeg
from streamshard.codec.picture import opened
from streamshard.errors import UsageError
from streamshard.stream.encoded import Decode, Encoded


class Crop(Protocol):
    """A crop of streamshard's: `RandomResizedCrop`, `CenterCrop`, `Resize`."""

    @property
    def form(self) -> Form | None:
        """What every result looks like; None where the sizes differ."""

    def framing(self, full: tuple[int, int], generator: torch.Generator) -> Framing:
        """What is kept of an image of this height and width."""

    def __call__(self, data: bytes, generator: torch.Generator) -> torch.Tensor:
        """Decode one image."""


@dataclass(frozen=True)
class GpuDecode:
    """Images decoded, cropped and resized on the GPU that uses them.

    Workers read files and decide what each crop keeps; their bytes travel, and nvJPEG decodes them
    in batches (`torchvision.io.decode_jpeg`; `pip install 'streamshard[gpu]'`) on the side stream.
    The result is what `crop` alone gives, with the same rectangles and flips, but for rounding and
    for nvJPEG decoding every image at full size.

    What nvJPEG can't do, or does otherwise (other formats than JPEG, CMYK, 12 bits, arithmetic
    coding, files that are to be turned by their Exif data, damaged ones), a CPU decodes;
    `loader.fallbacks` counts them.

    Attributes:
        crop: What is kept: a `RandomResizedCrop`, `CenterCrop` or `Resize`.
        decode: What decodes instead of nvJPEG: a function of a list of files, (bytes,) uint8
            tensors on the host, and of a device, to a list of (3, height, width) uint8 RGB tensors
            there. A RuntimeError of it means that it can't decode one of them. With it, any device
            will do.

    Only in a `StreamLoader`, since nobody else takes batches to a device:

    >>> import streamshard as ss
    >>> decode = {"jpg": ss.GpuDecode(ss.RandomResizedCrop(224))}
    """

    crop: Crop
    decode: Decode | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.crop, "framing") or getattr(self.crop, "mode", "RGB") != "RGB":
            raise UsageError(
                f"crop is {self.crop!r}; an ss.RandomResizedCrop, ss.CenterCrop or ss.Resize of "
                "RGB is wanted"
            )

    def __call__(self, data: bytes, generator: torch.Generator) -> Encoded:
        """One image on its way, in the worker.

        Raises:
            ValueError: A CPU would have to decode it, and can't.
        """
        if not is_plain_jpeg(data):
            pixels = self.crop(data, generator)
            size = (pixels.shape[1], pixels.shape[2])
            return Encoded(b"", size, Framing(Box(0, 0, *size), size), pixels)
        full = opened(data).size
        return Encoded(data, full, self.crop.framing(full, generator))

    def check(self, part: str, device: torch.device | None) -> Decode:
        """The function that decodes on a device.

        Args:
            part: Whose images, for the message.
            device: Where they will be.

        Raises:
            UsageError: nvJPEG does not work there, or torchvision is not installed.
        """
        if self.decode is not None:
            return self.decode
        if device is None or device.type != "cuda":
            raise UsageError(
                f"part {part!r} is to be decoded on a GPU, and batches go to "
                f"{'no device' if device is None else repr(str(device))}: "
                "StreamLoader(dataset, device='cuda'), or the crop alone without ss.GpuDecode"
            )
        if importlib.util.find_spec("torchvision") is None:
            raise UsageError(
                f"part {part!r} is to be decoded on a GPU, which torchvision does: "
                "pip install 'streamshard[gpu]'"
            )
        return nvjpeg


def nvjpeg(files: list[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
    """Decode JPEGs on a GPU; see `Decode`."""
    from torchvision.io import ImageReadMode, decode_jpeg

    # It decodes on a stream of its own, which does not wait for this one, into memory that the
    # allocator hands out as though it did: work that is still to read that memory must be done.
    torch.cuda.current_stream(device).synchronize()
    decoded: list[torch.Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    return decoded
