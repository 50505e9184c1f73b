"""Images: this project and its peers on the same JPEGs, whole pipelines in turns.

Each contestant reads, decodes, draws a random resized crop of 224 pixels and gives uint8 batches of
64, with the same number of workers. Ours, FFCV and DALI leave the colours of a pixel together
(`torch.channels_last`); the others lie channel by channel, and so do ours where it says so. The
page cache is warm and the first turn is not counted.
"""

import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contest import Contestant, Entry
from pictures import make_jpegs, make_small, mean_bytes, take_jpegs
from stages import profile_both

import streamshard as ss

DISTINCT = 1000  # images that are made; of more, each comes several times
SHARDS = 24  # of each set, so that every worker has several
OURS, REUSE = "streamshard", "streamshard, reuse"
CONTIGUOUS = "streamshard, reuse, contiguous"
Figures = dict[str, Any]

STREAMSHARD = (
    Entry(REUSE, "of_streamshard", options={"reuse": True}),
    Entry(OURS, "of_streamshard"),
)
APART = Entry(CONTIGUOUS, "of_streamshard", options={"reuse": True, "contiguous": True})
WEBDATASET = Entry("webdataset", "of_webdataset")
FOLDER = Entry("DataLoader over a folder", "of_folder")
MOSAICML = Entry("MosaicML streaming", "of_mosaicml", "mosaicml")
LITDATA = Entry("LitData", "of_litdata", "litdata")
DALI = Entry("DALI on the CPU", "of_dali", "dali")
FFCV = Entry("FFCV", "of_ffcv", "ffcv")
LIMITS = (
    Entry("decode, crop and resize alone", "of_decoding"),
    Entry("streamshard's decoder alone", "of_decoding", options={"reuse": True}),
)
DECODING = (*STREAMSHARD, APART, WEBDATASET, FOLDER, MOSAICML, LITDATA, DALI, FFCV, *LIMITS)
BYTES = (*STREAMSHARD, WEBDATASET, FOLDER, MOSAICML, LITDATA)
NPY = (
    Entry(REUSE, "of_streamshard", options={"reuse": True, "what": "npy"}),
    Entry(OURS, "of_streamshard", options={"what": "npy"}),
    Entry(CONTIGUOUS, "of_streamshard", options={"reuse": True, "contiguous": True, "what": "npy"}),
    Entry("FFCV, raw", "of_ffcv", "ffcv", {"what": "raw"}),
)


class Photographs:
    """The images in two sizes, as JPEGs and as tars, and who is measured on them."""

    def __init__(self, folder: Path, workers: int, rounds: int, count: int) -> None:
        self._folder, self._workers, self._rounds, self._count = folder, workers, rounds, count

    def make(self, given: Path | None) -> Figures:
        """Write them; returns their mean sizes in bytes."""
        source, figures = given, {}
        if source is None:
            source = self._folder / "made"
            figures["quality"] = make_jpegs(source, min(self._count, DISTINCT))
        take_jpegs(source, self._folder / "original", self._count)
        for size in ("small", "plain"):
            make_small(source, self._folder / f"made-{size}", marked=size == "small")
            take_jpegs(self._folder / f"made-{size}", self._folder / size, self._count)
        for size in ("original", "small", "plain"):
            mean = figures[f"mean bytes, {size}"] = mean_bytes(self._jpegs(size))
            shard_size = int(mean * self._count / SHARDS)
            ss.pack_images(self._jpegs(size), self.tars(size), shard_size=shard_size)
        return figures

    def _jpegs(self, size: str) -> Path:
        return self._folder / size

    def tars(self, size: str) -> Path:
        """The dataset of one size."""
        return self._folder / f"{size}-tars"

    def row(
        self, title: str, entries: Sequence[Entry], size: str, what: str, epochs: int = 1
    ) -> Figures:
        """Rates of all contestants on one set; prints as it goes.

        Args:
            title: Of the row.
            entries: Who takes part, where it is installed.
            size: "original", or with a shorter side of 256 "small", and "plain" where no restart
                markers lie between parts of an image.
            what: See `pipelines/serving.py`.
            epochs: In a turn; more of them where one is over too soon.
        """
        print(f"\n{title}", flush=True)
        rates: dict[str, list[float]] = {}
        prices: dict[str, list[float]] = {}
        with self._started(entries, size, what) as contestants:
            for number in range(self._rounds + 1):
                for each in contestants:
                    rate, price = self._turn(each, epochs)
                    if number:  # the first warms up
                        rates.setdefault(each.name, []).append(rate)
                        prices.setdefault(each.name, []).append(price)
            figures = told(rates, "images/s")
            # Other work on the machine disturbs this less.
            figures["processor us an image"] = told(prices, "processor us")
            if what == "crop" and size == "original":
                figures["first batch"] = self._first_batches(contestants)
        return figures

    def _turn(self, contestant: Contestant, epochs: int) -> tuple[float, float]:
        """Images a second, and microseconds of processor time for each."""
        before = contestant.processor_seconds()
        answer = contestant.ask(word="turn", epochs=epochs)
        used = contestant.processor_seconds() - before
        contestant.settle()
        if answer["samples"] < self._count * epochs:  # DALI fills its last batch
            raise SystemExit(f"{contestant.name}: {answer['samples']} images, not all")
        return answer["samples"] / answer["seconds"], used / answer["samples"] * 1e6

    def _first_batches(self, contestants: Sequence[Contestant]) -> Figures:
        print("\nseconds to the first batch of a new loader, its workers' start included")
        seconds: dict[str, list[float]] = {}
        for _ in range(min(self._rounds, 3)):
            for each in contestants:
                if each.name in {limit.name for limit in LIMITS}:
                    continue
                seconds.setdefault(each.name, []).append(each.ask(word="first")["seconds"])
                each.settle()
        return told(seconds, "seconds")

    @contextlib.contextmanager
    def _started(
        self, entries: Sequence[Entry], size: str, what: str
    ) -> Iterator[list[Contestant]]:
        with contextlib.ExitStack() as stack:
            there = []
            for number, entry in enumerate(entries):
                if not entry.is_there:
                    print(f"{entry.name}: not installed: tools/peers {entry.peer}")
                    continue
                task = {
                    "jpegs": str(self._jpegs(size)),
                    "tars": str(self.tars(size)),
                    "home": str(self._folder / f"{entry.script}-{size}-{what}-{number}"),
                    "workers": self._workers,
                    "what": what,
                }
                contestant = Contestant(entry, self._folder / "log", task)
                stack.callback(contestant.close)
                if contestant.lacks:
                    print(f"{entry.name}: not measured: {contestant.lacks}")
                else:
                    there.append(contestant)
            yield there


def medians(turns: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in turns.items()}


def told(turns: dict[str, list[float]], unit: str) -> Figures:
    """Medians, and how streamshard's stand to the others'; printed."""
    middle = medians(turns)
    ours = {name: value for name, value in middle.items() if name in (OURS, REUSE, CONTIGUOUS)}
    print(f"{'':32} {unit:>12} " + "".join(f"{name:>31} /" for name in ours))
    ratios: Figures = {}
    for name, value in middle.items():
        row = {f"{mine} / {name}": ours[mine] / value for mine in ours}
        print(f"{name:32} {value:12,.3f} " + "".join(f"{x:33.2f}" for x in row.values()))
        ratios |= row
    sys.stdout.flush()
    return {"medians": middle, "ratios": ratios, "turns": turns}


def measure(
    folder: Path, workers: int, rounds: int, *, jpegs: Path | None, count: int, profile: bool
) -> Figures:
    """All rows of the table; or where the time goes, which takes no peer."""
    photographs = Photographs(folder, workers, rounds, count)
    figures = photographs.make(jpegs)
    print(", ".join(f"{name} {value:,.0f}" for name, value in figures.items()), flush=True)
    if profile:
        for size in ("original", "small", "plain"):
            print(f"\n{size}")
            figures[f"profile, {size}"] = profile_both(photographs.tars(size), workers, rounds)
        return figures
    row = photographs.row
    figures["original"] = row("original JPEGs, decoded", DECODING, "original", "crop")
    figures["small"] = row("shorter side 256, decoded", DECODING, "small", "crop")
    figures["plain"] = row(
        "the same without restart markers", (*STREAMSHARD, FFCV), "plain", "crop"
    )
    figures["bytes"] = row("bytes of the originals, not decoded", BYTES, "original", "bytes", 10)
    figures["npy"] = row("shorter side 256, stored as pixels", NPY, "small", "npy")
    return figures
