"""Graphs that lie in files, as a source: read where they are encoded, in any process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamshard.codec.graph import GraphCodec
from streamshard.errors import SampleError
from streamshard.pack.encode import KEY
from streamshard.pack.files import Files
from streamshard.pack.sources import Sample, pack_order

if TYPE_CHECKING:
    from torch_geometric.data import Data

Split = Callable[[tuple[str, "Data"]], Sample]
Read = Callable[[Any], tuple["Data", dict[str, Any]]]


class GraphReader(ABC):
    """What one kind of file has to tell.

    Attributes:
        notes: What was found while looking through the files.
    """

    notes: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """The number of graphs."""

    @abstractmethod
    def __getitem__(self, number: int) -> Any:
        """Where a graph lies: small, picklable, and as `str` a place for people."""

    @property
    @abstractmethod
    def read(self) -> Read:
        """Turns such a place into a graph and what else belongs into its `json` part.

        Picklable; raises ValueError, OSError or RuntimeError where there is no graph.
        """

    def order(self, seed: int | None) -> Iterable[int]:
        """The numbers of all graphs in the order in which they are packed."""
        return pack_order(len(self), seed)

    def files(self, seed: int | None) -> Files | None:
        """The files as they were when they were looked through, in the order of a pack."""
        return None


class GraphFiles:
    """A source of the graphs in files; keys are their numbers.

    Attributes:
        classes: None.
        codecs: The graph codec.
        load: Reads one graph.
        notes: What was found.
    """

    classes = None
    portable = True

    def __init__(
        self, files: GraphReader, *, split: Split, seed: int | None, codec: GraphCodec
    ) -> None:
        """Take the files.

        Args:
            files: The files and how they are read.
            split: Makes a sample of a key and a graph.
            seed: Of the order in which samples are packed; None keeps the order.
            codec: Encodes graphs, and refuses what it is not to allow.
        """
        self.codecs, self.notes = {"graph": codec}, files.notes
        self.load: Callable[[tuple[str, Any]], Sample] = _Load(files.read, split)
        self._files, self._seed = files, seed

    def inputs(self) -> _Keyed:
        """See `Source`: keys and places."""
        return _Keyed(self._files, self._seed)

    def files(self) -> Files | None:
        """See `Listed`."""
        return self._files.files(self._seed)

    @staticmethod
    def key(given: tuple[str, Any]) -> str:
        """See `KeyedSource`."""
        return given[0]

    @staticmethod
    def place(keyed: tuple[str, Any]) -> str:
        """See `Source`."""
        return str(keyed[1])


class _Keyed:
    """Keys and places in the order in which they are packed."""

    def __init__(self, files: GraphReader, seed: int | None) -> None:
        self._files, self._seed = files, seed

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        width = max(6, len(str(len(self._files) - 1)))
        for number in self._files.order(self._seed):
            yield f"{number:0{width}d}", self._files[number]


@dataclass(frozen=True)
class _Load:
    """Reads the graph at one place; whatever is wrong with it names that place."""

    read: Read
    split: Split

    def __call__(self, keyed: tuple[str, Any]) -> Sample:
        key, place = keyed
        try:
            graph, rest = self.read(place)
            sample = self.split((key, graph))
        except OSError as error:
            raise SampleError(f"{place}: {error.strerror or error}") from None
        except (SampleError, ValueError, RuntimeError) as error:
            raise SampleError(f"{place}: {error}") from None
        if rest:
            sample["json"] = {**sample.get("json", {}), **rest}
        return {KEY: key, **sample}
