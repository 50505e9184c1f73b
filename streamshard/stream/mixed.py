"""One part of several sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from streamshard.plan.order import Places
from streamshard.stream.builder import BlockBuilder
from streamshard.stream.collate import Inferred
from streamshard.stream.parts import AllPlaces, PartReader, Place
from streamshard.stream.undecoded import RowReader, Undecoded


class Mixed:
    """One part of several sources: each sample is read by its own, all are laid out together."""

    def __init__(self, readers: Sequence[PartReader]) -> None:
        self._readers = readers
        self._joined = readers[0].joined(readers[1:])
        self._inferred = Inferred()

    def fetch(self, place: Place) -> Any:
        """See `PartReader`."""
        return self._readers[place.source].fetch(place)

    def decode_into(self, place: Place, row: torch.Tensor) -> Any:
        """See `RowReader`."""
        reader = cast("RowReader", self._readers[place.source])  # what is joined here decodes rows
        return reader.decode_into(place, row)

    def collect(self, place: Place, fetched: Any) -> Any:
        """See `PartReader`."""
        if self._joined is not None:
            return self._readers[place.source].collect(place, fetched)
        return self._inferred.learn(self.value(place, fetched))

    def value(self, place: Place, fetched: Any) -> Any:
        """See `PartReader`."""
        return self._readers[place.source].value(place, fetched)

    def gather(self, where: Places, places: AllPlaces | None) -> Any | None:
        """See `PartReader`."""
        found = None if self._joined is None else self._joined.gather(where, places)
        return found._replace(reader=self) if isinstance(found, Undecoded) else found

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        """See `PartReader`."""
        (self._joined or self._inferred).add(builder, name, values)

    def joined(self, others: Sequence[PartReader]) -> None:
        """See `PartReader`; a mixture is no source of another."""
