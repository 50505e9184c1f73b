"""A picture of a plan: which worker reads which shard when."""

from __future__ import annotations

import importlib.util
import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamshard.errors import StoreError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from streamshard.stream.survey import Picture, Plan

Colours = NDArray[np.float64]  # (colours, 3), 0 to 1

_NAMED_ROWS = 40  # shards that have room for their names
_HUES, _SHADES = 10, 4  # ranks that get a colour of their own, and workers that get a shade of it
_TOLD = 20  # readers that a legend names; more are a scale
_SEVERAL = -2  # what a picture's cell holds where several read
_LANE_LINES = 64  # lanes whose beginnings are drawn
_NOTE_WIDTH = 110  # letters
_DPI = 150
_BLACK, _WHITE = (0.15, 0.15, 0.15), (1.0, 1.0, 1.0)


def check_plot(path: str) -> None:
    """Refuse what could not be drawn in the end.

    Raises:
        UsageError: The name is not that of a PNG file, or matplotlib is not installed.
    """
    if not path.lower().endswith(".png"):
        raise UsageError(f"--plot {path}: a name that ends in .png is wanted")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'streamshard[plot]'")


def draw(plan: Plan, name: str, path: str) -> None:
    """Write the picture of a plan.

    Args:
        plan: What to draw.
        name: Of the dataset.
        path: PNG file; one that is there is replaced.

    Raises:
        StoreError: It can't be written.
    """
    from matplotlib.figure import Figure

    from streamshard.stream.survey import picture_of

    picture = picture_of(plan)
    figure = Figure(figsize=(12, 7), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _cells(axes, plan, picture)
    _words(axes, plan, picture)
    _lanes(axes, plan, picture)
    deal, rule = plan.deal, plan.rule
    figure.suptitle(f"{name}: {deal.total:,} samples in {len(plan.shards.manifest.table):,} shards")
    lanes = f", lanes: {rule.lanes:,}" if rule.shuffle is True else ""
    axes.set_title(
        f"epoch {plan.epoch}, ranks x workers: {deal.world_size:,} x {plan.workers:,}, "
        f"batches of {deal.batch_size:,}{lanes}",
        fontsize="medium",
    )
    file = io.BytesIO()
    figure.savefig(file, format="png")
    try:
        Path(path).write_bytes(file.getvalue())
    except OSError as error:
        raise StoreError(f"{path}: can't be written: {error.strerror}") from None


def _cells(axes: Axes, plan: Plan, picture: Picture) -> None:
    """The grid itself, and what its colours mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.patches import Patch

    grid = picture.readers
    present = np.unique(grid[grid >= 0])
    colours = _colours(plan, picture, len(present), present)
    # Readers to rows of a palette; SEVERAL and NOBODY, -2 and -1, are the two at its end.
    chosen = np.where(grid >= 0, np.searchsorted(present, grid), grid)
    palette = np.concatenate([colours, [_BLACK, _WHITE]])
    extent = (0.0, float(plan.deal.steps), float(len(grid)), 0.0)
    axes.imshow(palette[chosen], aspect="auto", interpolation="nearest", extent=extent)
    told = []
    if len(present) <= _TOLD:
        told = [
            Patch(color=tuple(colour), label=_name(plan, picture, reader))
            for colour, reader in zip(colours.tolist(), present.tolist(), strict=True)
        ]
    else:
        scale = ScalarMappable(Normalize(present[0], present[-1]), ListedColormap(colours))
        bar = axes.figure.colorbar(scale, ax=axes, label="rank", pad=0.01)
        bar.ax.invert_yaxis()
    if (grid == _SEVERAL).any():
        told.append(Patch(color=_BLACK, label="several"))
    if told:
        axes.figure.legend(handles=told, loc="outside right upper", frameon=False)


def _colours(plan: Plan, picture: Picture, count: int, present: NDArray[np.int64]) -> Colours:
    """(count, 3) one for each reader that is there: ranks by hue, their workers by shade."""
    from matplotlib import colormaps

    if count > _TOLD:
        return np.asarray(colormaps["turbo"](np.linspace(0.03, 0.97, count)))[:, :3]
    ranks, workers = plan.deal.world_size, plan.deal.workers
    if picture.by_rank or ranks > _HUES or workers > _SHADES or ranks == 1:
        palette = "tab10" if count <= _HUES else "tab20"
        return np.asarray(colormaps[palette](np.arange(count)))[:, :3]
    rank, worker = np.divmod(present, workers)
    hue = np.asarray(colormaps["tab10"](rank))[:, :3]
    paler = (0.65 * worker / max(workers - 1, 1))[:, None]
    colours: Colours = hue * (1 - paler) + paler
    return colours


def _name(plan: Plan, picture: Picture, reader: int) -> str:
    if picture.by_rank:
        return f"rank {reader}"
    rank, worker = divmod(reader, plan.deal.workers)
    return f"rank {rank}" + (f", worker {worker}" if plan.deal.workers > 1 else "")


def _lanes(axes: Axes, plan: Plan, picture: Picture) -> None:
    """Where lanes begin, and from when on they give what they have left over."""
    if len(picture.lane_rows) - 1 <= _LANE_LINES:
        for row in picture.lane_rows[1:-1].tolist():
            axes.axhline(row, color="black", linewidth=0.5, alpha=0.6)
    if picture.lanes > 1 and picture.turns_end < plan.deal.steps:
        axes.axvline(picture.turns_end, color="black", linewidth=1, linestyle=":")


def _words(axes: Axes, plan: Plan, picture: Picture) -> None:
    """What the axes are, and what is shown."""
    rows, shown = len(picture.shards), len(picture.lane_rows) - 1
    axes.set_ylabel("shard")
    if rows <= _NAMED_ROWS:
        names = plan.shards.manifest.table.names
        named = [names[number].removesuffix(".tar") for number in picture.shards.tolist()]
        axes.set_yticks(np.arange(rows) + 0.5, named, fontsize="small")
        axes.tick_params(axis="y", length=0)
        for row in range(1, rows):
            axes.axhline(row, color="white", linewidth=1.5)
    notes = [f"{rows:,} of {len(plan.shards.manifest.table):,} shards, as this epoch lays them out"]
    if shown < picture.lanes:
        notes.append(f"of the first {shown:,} of {picture.lanes:,} lanes")
    if picture.looked_at is not None:
        notes.append(f"{picture.looked_at:,} samples of each looked at")
    if picture.is_batches and plan.deal.world_size > 1:
        notes.append("the ranks of a step side by side")
    if picture.lanes > 1 and picture.turns_end < plan.deal.steps:
        notes.append("dotted: the lanes' turns end, what they have left over follows")
    axes.set_xlabel("step\n" + textwrap.fill("; ".join(notes), _NOTE_WIDTH))
