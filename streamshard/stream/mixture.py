"""Several datasets in fixed proportions, as their user says it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamshard.errors import UsageError
from streamshard.plan.mixture import MixturePlan, SourcePlan, Stop
from streamshard.plan.proportions import Proportions
from streamshard.stream.source import Decoder, Source


@dataclass(frozen=True)
class Mixture:
    """Several datasets, streamed in fixed proportions: `ShardDataset(Mixture(…), batch_size=…)`.

    A global batch no longer than a turn of the lanes holds each source's share to less than the
    number of sources and one. Every source goes through its samples epoch by epoch, a new order
    each time, also where the mixture's epoch ends in between; epochs of a source that is cut into
    lanes overlap by about a turn. Sources are told apart in a batch by `"__source__"`, (batch,)
    int64, their numbers in the order given here.

    Attributes:
        sources: By name, a URL, read as the mixture's `ShardDataset` says, or a `ShardDataset`, of
            which its samples (all, or a view of them), `shuffle`, `window`, `decode` and
            `transform` are used.
        weights: By name, any numbers above 0; in proportion to the sources' samples if None.
        samples: By name, instead of weights: how many samples of each make an epoch.
        stop: Where an epoch ends, by the proportions: "longest" when every source was given whole,
            "first" when the first of them would begin anew, or after so many samples; at a whole
            grain in any case.

    Raises:
        UsageError: There is no source, or the names differ.
    """

    sources: Mapping[str, Any]
    weights: Mapping[str, float] | None = None
    samples: Mapping[str, int] | None = None
    stop: Stop = "longest"

    def __post_init__(self) -> None:
        if not isinstance(self.sources, Mapping) or not self.sources:
            raise UsageError(
                "a mixture has at least one source, by name: {'photos': URL or dataset}"
            )
        for what, given in (("weights", self.weights), ("samples", self.samples)):
            if given is not None and set(given) != set(self.sources):
                odd = sorted(set(given) ^ set(self.sources))
                raise UsageError(f"{what}= and sources differ in {', '.join(odd)}")
        if self.samples is not None:
            if self.weights is not None or self.stop != "longest":
                raise UsageError("samples= says both weights and stop; give one or the other")
            if not all(type(count) is int and count > 0 for count in self.samples.values()):
                raise UsageError(f"samples={dict(self.samples)}; each a number of at least 1")
        if self.stop not in ("first", "longest") and (type(self.stop) is not int or self.stop < 1):
            raise UsageError(
                f'stop is {self.stop!r}; it must be "first", "longest" or a number of samples'
            )

    @property
    def has_only_datasets(self) -> bool:
        """Whether no source is a URL, to be read as the mixture's dataset says."""
        return not any(isinstance(given, str | os.PathLike) for given in self.sources.values())

    def plan(self, sources: Sequence[Source]) -> MixturePlan:
        """What the plan needs to know, once the sources are open."""
        plans = tuple(
            SourcePlan(source.view.counts, source.shuffle, source.window) for source in sources
        )
        if self.samples is not None:
            proportions = Proportions.of([self.samples[name] for name in self.sources])
            return MixturePlan(plans, proportions, sum(self.samples.values()))
        given = self.weights or dict(zip(self.sources, map(len, plans), strict=True))
        proportions = Proportions.of([given[name] for name in self.sources])
        return MixturePlan(plans, proportions, self.stop)


def mixture_fingerprint(plan: MixturePlan, sources: Sequence[Source]) -> str:
    """32 hex digits over everything that the order of a mixture depends on besides its rule."""
    digest = hashlib.sha256(f"mixture {plan.proportions.weights} {plan.stop!r}\n".encode())
    for source in sources:
        digest.update(f"{source.view.fingerprint} {source.shuffle!r} {source.window}\n".encode())
    return digest.hexdigest()[:32]


def sources_of(
    mixture: Mixture,
    opened: Callable[[str | os.PathLike[str]], Source],
    decode: Mapping[str, Decoder],
) -> tuple[Source, ...]:
    """The sources of a mixture, opened.

    Args:
        mixture: The mixture.
        opened: Opens a URL.
        decode: By part, what becomes of it in sources that are opened here; a part may be in some
            of them only.

    Raises:
        UsageError: A source is neither a URL nor a dataset, or a part is in none.
    """
    sources = []
    for name, given in mixture.sources.items():
        if isinstance(given, str | os.PathLike):
            source = opened(given)
            there = source.shards.manifest.parts
            kept = {part: use for part, use in decode.items() if set(part.split(";")) & set(there)}
            source = dataclasses.replace(source, decode=kept)
        elif isinstance(getattr(given, "source", None), Source):
            source = given.source
        else:
            raise UsageError(
                f"source {name!r} is a {type(given).__name__}; a URL or a ShardDataset"
            )
        sources.append(source)
    for source in sources:
        source.shards.share_descriptors(len(sources))
    unused = set(decode).difference(*(source.decode for source in sources))
    if unused:
        raise UsageError(f"decode= names part {min(unused)!r}, which no source has")
    return tuple(sources)
