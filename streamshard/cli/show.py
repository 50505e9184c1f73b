"""What commands print: progress to standard error, results to standard output, errors in a line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, int | None, int], None]
_LINE_SECONDS = 10.0  # between lines where there is no terminal


def format_bytes(count: int) -> str:
    """Bytes for people, decimal.

    >>> format_bytes(999), format_bytes(1_500_000)
    ('999 B', '1.5 MB')
    """
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if round(size, 1) < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


@contextlib.contextmanager
def progress(what: str) -> Iterator[Report]:
    """A bar on a terminal, a line now and then elsewhere; both on standard error."""
    console = Console(stderr=True)
    begin = time.monotonic()
    if not console.is_terminal:
        yield _lines(what, begin)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, rate="")

        before: list[int] = []

        def report(samples: int, total: int | None, nbytes: int) -> None:
            rate = _rate(samples, nbytes, time.monotonic() - begin, before)
            bar.update(task, completed=samples, total=total, rate=rate)

        yield report


def _lines(what: str, begin: float) -> Report:
    last, before = begin, list[int]()

    def report(samples: int, total: int | None, nbytes: int) -> None:
        nonlocal last
        now = time.monotonic()
        rate = _rate(samples, nbytes, now - begin, before)
        if now - last >= _LINE_SECONDS:
            last = now
            of = f" of {total}" if total is not None else ""
            line = f"{what}: {samples}{of} samples, {rate}"
            print(line, file=sys.stderr, flush=True)

    return report


def _rate(samples: int, nbytes: int, seconds: float, before: list[int]) -> str:
    """How fast it goes, without what was done before the first report."""
    before[:] = before or [samples - 1, 0 if samples == 1 else nbytes]
    samples, nbytes, seconds = samples - before[0], nbytes - before[1], max(seconds, 1e-3)
    return f"{samples / seconds:,.0f} samples/s, {format_bytes(int(nbytes / seconds))}/s"


def result(value: Any, lines: list[str], *, as_json: bool) -> None:
    """Print a result: one JSON object, or lines for people."""
    if as_json:
        value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        print(json.dumps(value))
        return
    for line in lines:
        print(line)


def tell_finished(destination: str, *, resume: bool) -> None:
    """Say on standard error what of a pack is finished, where it is to be gone on with."""
    if not resume:
        return
    from streamshard.pack.journal import progress_of

    shards, inputs = progress_of(destination)
    if shards:
        what = f"{shards:,} shard{'s' if shards > 1 else ''}, {inputs:,} inputs done; going on"
        print(f"{destination}: {what}", file=sys.stderr)


def print_summary(summary: Any, where: str, *, as_json: bool) -> None:
    """Print what a pack did; of one with splits, a line for each."""
    splits = getattr(summary, "splits", None)
    lines = [
        *(_summary_line(f"{where}/{name}", split) for name, split in (splits or {}).items()),
        *([] if splits else [_summary_line(where, summary)]),
        *summary.notes,
    ]
    if summary.skipped:
        lines.append(f"{len(summary.skipped)} inputs were skipped:")
        lines += [f"  {reason}" for reason in summary.skipped]
    result(summary, lines, as_json=as_json)


def _summary_line(where: str, summary: Any) -> str:
    return (
        f"{where}: {summary.samples} samples in {summary.shards} shards, "
        f"{format_bytes(summary.bytes)}, {summary.seconds:.1f} s, "
        f"fingerprint {summary.fingerprint}"
    )
