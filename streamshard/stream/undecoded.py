"""Samples that are decoded when their rows in a block are there, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from streamshard.codec.base import Form
from streamshard.stream.collate import formed
from streamshard.stream.parts import PartReader, Place

# Bytes of a sample from which on it is written to its row by itself: less is stacked with the
# others in less time.
WORTH_A_ROW = 4096


class Undecoded(NamedTuple):
    """One part of all samples of a batch.

    What is decoded goes to its row at once, while caches hold it, and its memory to the next one.

    Attributes:
        reader: Of the part.
        places: The samples.
        form: Of each.
    """

    reader: PartReader
    places: Sequence[Place]
    form: Form

    def decode_into(self, name: str, rows: torch.Tensor) -> None:
        """Fill (samples, *form.shape).

        Args:
            name: Of the part.
            rows: To be written.

        Raises:
            SampleError: One can't be decoded.
            DamagedError: Bytes are not those that were packed.
            UsageError: One is not of the form.
        """
        with torch.no_grad():
            for row, place in zip(rows.unbind(), self.places, strict=True):
                value = self.reader.collect(place, self.reader.fetch(place))
                row.copy_(formed(name, self.form, value))
