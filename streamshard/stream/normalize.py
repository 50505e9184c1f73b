"""Pixels to what a model eats: subtract the mean, divide by the deviation, where the batch is.

Images cross processes and PCIe as uint8; this is done after that, to a whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from streamshard.errors import UsageError

_FORMATS = (torch.channels_last, torch.contiguous_format)


@dataclass(frozen=True)
class Normalize:
    """Images normalised by channel: (x / 255 - mean) / std.

    That is torchvision's `ToDtype(torch.float32, scale=True)` followed by its `Normalize`, by one
    multiplication and one addition for each pixel, written once, in the dtype and the memory format
    asked for. It differs from the formula in exact arithmetic by at most
    (1 + |mean|) / std · 2⁻²² and, in a dtype of 16 bits, by half a unit in its last place.

    Attributes:
        mean: Of each channel, in parts of 255.
        std: Standard deviation of each channel, in parts of 255.
        dtype: Of the result.
        memory_format: Of the result; `torch.channels_last` is what convolutions are fastest with on
            recent GPUs, `torch.contiguous_format` leaves (batch, channels, height, width) as it is.

    Called with a (batch, channels, height, width) uint8 tensor on any device, or a list of
    (channels, height, width) ones, it returns the same shapes on the same device, in new memory.

    >>> images = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    >>> Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))(images)[0, :, 0, 0]
    tensor([2.0000, 2.0000, 2.0000])
    """

    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.channels_last

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if len(self.mean) != len(self.std) or not self.mean:
            raise UsageError(
                f"mean has {len(self.mean)} channels and std {len(self.std)}; both have one number "
                "for each channel"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UsageError(
                f"mean is {self.mean} and std {self.std}; finite numbers are wanted, std above 0"
            )
        if not self.dtype.is_floating_point:
            raise UsageError(f"dtype is {self.dtype}; normalised pixels need a floating-point one")
        if self.memory_format not in _FORMATS:
            raise UsageError(
                f"memory_format is {self.memory_format}; torch.channels_last or "
                "torch.contiguous_format is wanted"
            )

    @classmethod
    def imagenet(cls, **options: Any) -> Normalize:
        """With the mean and deviation of ImageNet's training images.

        The numbers are those that torchvision's and timm's pretrained models are documented with.

        Args:
            options: `dtype` and `memory_format`.
        """
        return cls(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), **options)

    def __call__(self, images: Any) -> Any:
        """Normalise a batch.

        Raises:
            UsageError: It is not uint8, or has other channels.
        """
        if isinstance(images, list):
            return [self._checked(image, dims=3)[0] for image in images]
        return self._checked(images, dims=4)

    def _checked(self, images: Any, dims: int) -> torch.Tensor:
        channels = len(self.mean)
        if (
            not isinstance(images, torch.Tensor)
            or images.dtype != torch.uint8
            or images.dim() != dims
            or images.shape[-3] != channels
        ):
            found = (
                f"{images.dtype} of shape {tuple(images.shape)}"
                if isinstance(images, torch.Tensor)
                else type(images).__name__
            )
            raise UsageError(
                f"Normalize got {found}; it wants uint8 images of {channels} channels, "
                "(batch, channels, height, width) or a list of (channels, height, width)"
            )
        return self._normalised(images if dims == 4 else images[None])

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        out = torch.empty(
            images.shape, dtype=self.dtype, device=images.device, memory_format=self.memory_format
        )
        scale, bias = _factors(tuple(self.mean), tuple(self.std), images.device)
        # On a GPU the uint8 pixels become numbers in the registers of the one kernel. A CPU makes
        # them numbers in memory first, so image by image, which its cache holds.
        pieces: Iterable[Any] = range(len(images)) if images.device.type == "cpu" else [...]
        for piece in pieces:
            torch.addcmul(bias, images[piece], scale, out=out[piece])
        return out


@lru_cache
def _factors(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and -mean / std, (channels, 1, 1) float32 each, rounded once.

    Kept for good: the copy to a GPU waits for its end, which is then paid for once.
    """
    pairs = list(zip(mean, std, strict=True))
    columns = [1 / (255 * s) for _, s in pairs], [-m / s for m, s in pairs]
    scale, bias = (torch.tensor(c, dtype=torch.float32).view(-1, 1, 1) for c in columns)
    return scale.to(device), bias.to(device)
