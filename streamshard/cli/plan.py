"""`streamshard plan`: how a dataset will be read, before anything is."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamshard.cli.options import AsJson, Destination, IndexAt
from streamshard.cli.show import format_bytes, result

if TYPE_CHECKING:
    from streamshard.stream.survey import Load, Measure, Plan, Survey


class Shuffle(enum.StrEnum):
    """What `ShardDataset` calls True, "full" and False."""

    windowed = "windowed"
    full = "full"
    none = "none"


class Tail(enum.StrEnum):
    """What becomes of an incomplete last global batch."""

    drop = "drop"
    pad = "pad"
    exact = "exact"


_SHUFFLES: dict[Shuffle, Any] = {Shuffle.windowed: True, Shuffle.full: "full", Shuffle.none: False}
_MOST = 2**31  # of what is multiplied, so that products stay inside 64 bits

Size = Annotated[int, typer.Option(min=1, max=_MOST, help="Ranks.")]


def plan(
    destination: Destination,
    world_size: Size = 1,
    workers: Annotated[int, typer.Option(min=0, help="Of each rank; 0: its own process.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, max=_MOST, help="Per rank and step.")] = 32,
    shuffle: Annotated[Shuffle, typer.Option(help="As ShardDataset has it.")] = Shuffle.windowed,
    seed: Annotated[int, typer.Option(min=0, help="Of the order.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, max=2**62, help="Which epoch.")] = 0,
    tail: Annotated[Tail, typer.Option(help="Of the last global batch.")] = Tail.drop,
    lanes: Annotated[int | None, typer.Option(min=1, max=2**22, help="By default derived.")] = None,
    grain: Annotated[int | None, typer.Option(min=1, max=_MOST, help="The batch size.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="By default 4 mean shards.")] = None,
    prefetch: Annotated[int, typer.Option(min=1, help="Batches a worker has ready.")] = 4,
    index: IndexAt = None,
    plot: Annotated[str | None, typer.Option(help="PNG file: who reads which shard when.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell how a dataset will be read: steps, shards of each worker, shuffle; reads no shard."""
    from streamshard.cli.picture import check_plot, draw
    from streamshard.stream.reader import Shards
    from streamshard.stream.survey import Plan, survey

    if plot is not None:
        check_plot(plot)
    shards = Shards(destination, index=index)
    planned = Plan.of(
        shards,
        world_size=world_size,
        workers=workers,
        batch_size=batch_size,
        shuffle=_SHUFFLES[shuffle],
        seed=seed,
        epoch=epoch,
        tail=tail.value,
        lanes=lanes,
        grain=grain,
        window=window,
    )
    surveyed = survey(planned)
    if plot is not None:
        draw(planned, destination, plot)
    in_flight = planned.in_flight(prefetch)
    lines = [
        *_head(planned, destination),
        f"steps      {surveyed.steps} on every rank; tail {tail.value}: "
        f"{surveyed.dropped} samples dropped, {surveyed.padded} padded",
        f"in flight  {in_flight} samples, {prefetch if workers else 1} batches for each "
        + ("worker" if workers else "rank"),
        "",
        *_reads(planned, surveyed),
        "",
        *_shuffle(surveyed),
    ]
    result(_value(planned, surveyed, in_flight), lines, as_json=as_json)


def _value(plan: Plan, survey: Survey, in_flight: int) -> dict[str, Any]:
    """The result as one object; what may be an estimate says from how many it is."""
    manifest, deal, classes = plan.shards.manifest, plan.deal, survey.classes
    return {
        "samples": deal.total,
        "shards": len(manifest.table),
        "bytes": int(manifest.table.nbytes.sum()),
        "fingerprint": manifest.fingerprint,
        "world_size": deal.world_size,
        "workers": plan.workers,
        "batch_size": deal.batch_size,
        "tail": deal.tail,
        "epoch": plan.epoch,
        **dataclasses.asdict(plan.rule),
        "steps": survey.steps,
        "dropped": survey.dropped,
        "padded": survey.padded,
        "in_flight": in_flight,
        "reads": {
            "workers": dataclasses.asdict(survey.workers),
            "ranks": dataclasses.asdict(survey.ranks),
            "exact": survey.shards_seen == survey.shards,
            "seen": survey.shards_seen,
            "of": survey.shards,
            "what": "shards",
        },
        "mixing": {
            name: measure and {**dataclasses.asdict(measure), "exact": measure.is_exact}
            for name, measure in vars(survey.mixing).items()
        },
        "classes": classes and {**dataclasses.asdict(classes), "exact": classes.is_exact},
    }


def _head(plan: Plan, destination: str) -> Iterator[str]:
    deal, rule, table = plan.deal, plan.rule, plan.shards.manifest.table
    nbytes = format_bytes(int(table.nbytes.sum()))
    yield f"{destination}: {deal.total} samples in {len(table)} shards, {nbytes}"
    shuffle = next(name.value for name, value in _SHUFFLES.items() if value == rule.shuffle)
    order = f"shuffle {shuffle}, seed {rule.seed}, epoch {plan.epoch}"
    if rule.shuffle is True:
        order += f", lanes {rule.lanes}, grain {rule.grain}, window {rule.window}"
    yield order
    yield f"ranks x workers x batch: {deal.world_size} x {plan.workers} x {deal.batch_size}"
    yield ""


def _reads(plan: Plan, survey: Survey) -> Iterator[str]:
    rows = [["", "least", "mean", "most shards", "", "least", "mean", "most bytes"]]
    rows += [_load_row(f"each of {load.readers} {who} reads", load) for who, load in _loads(survey)]
    yield from _table(rows)
    each = [("rank", survey.ranks.each or ())]
    if plan.deal.workers > 1:
        each.append(("worker", survey.workers.each or ()))
    told = [
        [_name(who, number, plan.deal.workers), f"{shards} shards", format_bytes(nbytes)]
        for who, loads in each
        for number, (shards, nbytes) in enumerate(loads)
    ]
    if told:
        yield ""
        yield from _table(told)
    yield ""
    told = [
        [
            f"shards are read by {who}",
            f"{load.fetches} times,",
            f"{load.fetches / max(survey.shards, 1):.2f} times each;",
            f"{load.shared} by more than one",
        ]
        for who, load in _loads(survey)
    ]
    yield from _table(told)
    if survey.shards_seen < survey.shards:
        yield f"estimated from {survey.shards_seen} of {survey.shards} shards"
    else:
        yield f"exact, from all {survey.shards} shards"


def _loads(survey: Survey) -> list[tuple[str, Load]]:
    return [("workers", survey.workers), ("ranks", survey.ranks)]


def _name(who: str, number: int, workers: int) -> str:
    rank, worker = divmod(number, workers)
    return f"rank {rank}, worker {worker}" if who == "worker" else f"rank {number}"


def _load_row(name: str, load: Load) -> list[str]:
    shards, nbytes = load.shards, load.bytes
    return [
        name,
        "?" if shards.least is None else str(shards.least),
        f"{shards.mean:.1f}",
        "?" if shards.most is None else str(shards.most),
        "",
        "?" if nbytes.least is None else format_bytes(nbytes.least),
        format_bytes(round(nbytes.mean)),
        "?" if nbytes.most is None else format_bytes(nbytes.most),
    ]


def _shuffle(survey: Survey) -> list[str]:
    mixing, classes = survey.mixing, survey.classes
    rows = [["shuffle", "here", "perfect", ""]]
    rows += [
        [name, _number(measure.here, form), _number(measure.perfect, form), _basis(measure)]
        for name, measure, form in (
            ("way from pack order, of all samples", mixing.distance, ".3f"),
            ("way between neighbours in pack order", mixing.neighbour_distance, ".3f"),
            ("neighbours in pack order in one step", mixing.neighbours_in_step, "%"),
            ("shards in a batch", mixing.batch_shards, ".1f"),
            ("shards in a step of all ranks", mixing.step_shards, ".1f"),
        )
        if measure is not None
    ]
    if classes is not None:
        basis = (
            "exact"
            if classes.is_exact
            else f"from {classes.batches} of {classes.of_batches} batches, "
            f"{classes.indexes} of {classes.of_indexes} indexes"
        )
        rows.append(
            [
                "two of a batch of one class",
                _percent(classes.here),
                _percent(classes.perfect),
                basis,
            ]
        )
    return _table(rows) if len(rows) > 1 else []


def _number(value: float, form: str) -> str:
    return _percent(value) if form == "%" else format(value, form)


def _percent(share: float) -> str:
    """Three digits, without an exponent.

    >>> _percent(0.123456), _percent(0.0000262149)
    ('12.3 %', '0.00262 %')
    """
    digits = 2 - math.floor(math.log10(100 * share)) if share > 0 else 0
    return f"{100 * share:.{max(digits, 0)}f} %"


def _basis(measure: Measure) -> str:
    if measure.is_exact:
        return "exact"
    return f"from {measure.seen} of {measure.of} {measure.what}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under each other: the first and the last to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        cells = [name.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
