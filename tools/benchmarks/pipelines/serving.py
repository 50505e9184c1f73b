"""What the script of every pipeline does: pack, then one turn for each question.

Questions come as JSON, one a line, on standard input; answers leave on what was standard output.
Imported before anything that is not Python's own: it adds what a peer's environment is lent.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(os.environ["STREAMSHARD_LENT"])

BATCH_SIZE, CROP = 64, 224
AHEAD = 4  # batches that each worker may have ready, of all whose number can be said


@dataclass(frozen=True)
class Task:
    """What is to be measured.

    Attributes:
        jpegs: Class folders of JPEGs.
        tars: The same images as packed by streamshard: tars in the WebDataset convention.
        home: Where a pipeline keeps its own format.
        workers: Processes, or threads where it has threads.
        what: "crop": decoded, a random resized crop of 224 pixels, uint8. "bytes": not decoded.
            "npy" or "raw": the same crops of pixels that are stored decoded.
        reuse: Of streamshard, whether memory is used again.
        contiguous: Of streamshard, whether batches lie channel by channel, not pixel by pixel.
    """

    jpegs: str
    tars: str
    home: str
    workers: int
    what: str
    reuse: bool = False
    contiguous: bool = False

    @property
    def files(self) -> list[tuple[str, int]]:
        """Paths and classes of the JPEGs, in random order: a folder is sorted by class."""
        import random

        folders = sorted(path for path in Path(self.jpegs).iterdir() if path.is_dir())
        found = [
            (str(path), number)
            for number, folder in enumerate(folders)
            for path in sorted(folder.glob("*.jpg"))
        ]
        random.Random(0).shuffle(found)
        return found


class NotYetError(Exception):
    """What can't be done by the release that is measured."""


class Pipeline:
    """One way from the files to batches."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def pack(self) -> None:
        """Make what is read, if it is not the JPEGs or the tars.

        Raises:
            NotYetError: It can't be read this way.
        """

    def open(self) -> Iterable[Any]:
        """A loader: a pass over it is an epoch."""
        raise NotImplementedError

    def begin(self, loader: Any) -> None:
        """Throw away what was made before the clock runs."""

    def count(self, batch: Any) -> int:
        """Samples of a batch."""
        return len(batch[0])

    def close(self, loader: Any) -> None:
        """End what a loader has started; dropping it must be enough otherwise."""


class _Server:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._loader = pipeline, None

    def first(self) -> dict[str, float]:
        """Seconds to the first batch of a new loader, its workers' start included."""
        loader = self._pipeline.open()
        begin = time.perf_counter()
        iterator = iter(loader)
        next(iterator)
        seconds = time.perf_counter() - begin
        del iterator
        self._pipeline.close(loader)
        return {"seconds": seconds}

    def turn(self, epochs: int) -> dict[str, float]:
        """So many epochs, one after another, by one loader and its workers."""
        if self._loader is None:
            self._loader = self._pipeline.open()
        samples = 0
        self._pipeline.begin(self._loader)
        begin = time.perf_counter()
        for _ in range(epochs):
            for batch in self._loader:
                samples += self._pipeline.count(batch)
        return {"seconds": time.perf_counter() - begin, "samples": samples}

    def end(self) -> dict[str, float]:
        """End the workers."""
        if self._loader is not None:
            self._pipeline.close(self._loader)
            self._loader = None
        return {}


def serve(kind: type[Pipeline]) -> None:
    """Answer until the word is `end`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some print as they go
    pipeline = kind(Task(**json.loads(sys.stdin.readline())))
    try:
        pipeline.pack()
    except NotYetError as error:
        print(json.dumps({"lacks": str(error)}), file=answers, flush=True)
        return
    print("{}", file=answers, flush=True)
    server, word = _Server(pipeline), ""
    while word != "end":
        question = json.loads(sys.stdin.readline())
        word = question.pop("word")
        answer = getattr(server, word)(**question)
        print(json.dumps(answer), file=answers, flush=True)
