"""Samples that are decoded when their rows in a block are there, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from streamshard.codec.base import Form
from streamshard.stream.collate import formed
from streamshard.stream.parts import Place

# Bytes of a sample from which on it is written to its row by itself: less is stacked with the
# others in less time.
WORTH_A_ROW = 4096


class RowReader(Protocol):
    """What decodes samples of a part."""

    def decode_into(self, place: Place, row: torch.Tensor) -> Any:
        """Read and decode one; the row, where the value was written there, else the value."""


class Undecoded(NamedTuple):
    """One part of all samples of a batch.

    What is decoded goes to its row at once, while caches hold it, and its memory to the next one.

    Attributes:
        reader: Of the part.
        places: The samples.
        form: Of each.
    """

    reader: RowReader
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
                value = self.reader.decode_into(place, row)
                if value is not row:
                    row.copy_(formed(name, self.form, value))
