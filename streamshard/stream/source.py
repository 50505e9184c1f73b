"""One dataset as a stream reads it: its samples, their order, and what becomes of their parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamshard.errors import UsageError
from streamshard.plan.order import Shuffle
from streamshard.stream.choice import Graphs
from streamshard.stream.reader import Shards
from streamshard.stream.view import View

Decoder = Callable[..., Any] | Graphs
Transform = Callable[..., Mapping[str, Any]]  # of a sample, and perhaps a generator


@dataclass(frozen=True)
class Source:
    """What a dataset brings into a stream.

    Attributes:
        shards: Its samples by number.
        view: Which of them are streamed.
        shuffle: False, True or "full".
        window: Samples that are shuffled among each other; None for the usual.
        decode: By part, what becomes of it.
        transform: Of whole samples, or None.
    """

    shards: Shards
    view: View
    shuffle: Shuffle
    window: int | None
    decode: Mapping[str, Decoder]
    transform: Transform | None

    @property
    def where(self) -> str:
        """The URL, without secrets."""
        return self.shards.where

    def viewed(self, view: View) -> Source:
        """The same, of other samples."""
        return dataclasses.replace(self, view=view)


def common_classes(sources: Sequence[Source]) -> Sequence[str] | None:
    """The class names, where all sources have the same ones."""
    found = {tuple(source.shards.classes or ()) for source in sources}
    return (found.pop() or None) if len(found) == 1 else None


def refuse_other_classes(sources: Sequence[Source]) -> None:
    """Refuse sources in whose `cls` one number means several classes.

    Raises:
        UsageError: Two of them have class names, and not the same; no decoder maps them.
    """
    plain = [source for source in sources if "cls" not in source.decode and source.shards.classes]
    for source in plain[1:]:
        if [*(source.shards.classes or ())] != [*(plain[0].shards.classes or ())]:
            raise UsageError(
                f"{plain[0].where} and {source.where} have different class names, so a number in "
                "'cls' would mean two things; map them by decode={'cls': function} of the sources, "
                "or leave 'cls' out of parts="
            )
