"""PyG graphs to shards."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamshard.codec.graph import GraphCodec
from streamshard.codec.pyg import without_others
from streamshard.errors import SampleError, UsageError
from streamshard.pack.encode import KEY
from streamshard.pack.job import OnError, Progress, Summary, pack
from streamshard.pack.sources import Sample, pack_order
from streamshard.pack.writer import ShardWriter

if TYPE_CHECKING:
    from torch_geometric.data import Data


class Graphs:
    """An iterable of PyG `Data`.

    Attributes:
        classes: None.
        codecs: The graph codec with what it is to allow.
        notes: What was found while listing.
    """

    classes = None
    place = None  # keys are the graphs' numbers
    portable = False  # the objects are in this process already

    def __init__(
        self,
        graphs: Iterable[Data],
        *,
        seed: int | None,
        allow_empty: bool,
        allow_nan: bool,
        narrow: bool = False,
    ) -> None:
        """Take the graphs.

        Args:
            graphs: Anything that can be iterated; shuffled only where it has a length and can be
                indexed, since a stream would have to be held in memory for that.
            seed: Of the order in which samples are packed; None keeps the order.
            allow_empty: Take graphs without nodes.
            allow_nan: Take NaN and infinity.
            narrow: Keep integers in as few bytes as each graph's values allow.
        """
        codec = GraphCodec(allow_empty=allow_empty, allow_nan=allow_nan, narrow=narrow)
        self.codecs = {"graph": codec}
        self.notes: list[str] = []
        self._graphs, self._seed = graphs, seed
        if hasattr(graphs, "__cat_dim__") and not hasattr(graphs, "to_data_list"):
            raise UsageError(
                f"the source is one {type(graphs).__name__}; an iterable of graphs is wanted"
            )
        if seed is not None and not _is_indexed(graphs):
            self.notes.append("not shuffled: the source can only be read once, from the front")

    def inputs(self) -> Iterable[tuple[str, Data]]:
        """See `Source`: keys and graphs."""
        if not _is_indexed(self._graphs):
            return ((f"{number:09d}", graph) for number, graph in enumerate(self._graphs))
        return _IndexedGraphs(self._graphs, pack_order(len(self._graphs), self._seed))  # type: ignore[arg-type]

    @staticmethod
    def load(keyed: tuple[str, Data]) -> Sample:
        """See `Source`: tensors become the part `graph`, everything else the part `json`."""
        key, graph = keyed
        if not hasattr(graph, "stores"):
            raise SampleError(f"graph {key}: {type(graph).__name__} is not a PyG Data")
        tensors, rest = without_others(graph)
        return {KEY: key, "graph": tensors} | ({"json": rest} if rest else {})


def _is_indexed(graphs: Iterable[Any]) -> bool:
    return isinstance(graphs, Sized) and hasattr(graphs, "__getitem__")


class _IndexedGraphs:
    """Keys and graphs of a sequence in another order, each taken when it is its turn."""

    def __init__(self, graphs: Sequence[Data], order: Sequence[int]) -> None:
        self._graphs, self._order = graphs, order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[str, Data]]:
        width = max(6, len(str(len(self._order) - 1)))
        return ((f"{number:0{width}d}", self._graphs[number]) for number in self._order)


def graphs_of(spec: str) -> Iterable[Any]:
    """What a spec on the command line stands for.

    Args:
        spec: `module:callable` or `file.py:callable`; the current folder is looked in too. The
            callable takes nothing and returns an iterable of `Data`.

    Raises:
        UsageError: The spec is of another kind, or does not lead to a callable.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{spec!r} is not a graph source; module:callable or file.py:callable is")
    function = getattr(_module(place), name, None)
    if not callable(function):
        raise UsageError(f"{spec}: there is no callable {name!r} in {place}")
    graphs = function()
    if hasattr(graphs, "__cat_dim__") or not isinstance(graphs, Iterable):
        raise UsageError(f"{spec} returned a {type(graphs).__name__}, not an iterable of graphs")
    return graphs


def _module(place: str) -> Any:
    if place.endswith(".py"):
        if not os.path.isfile(place):
            raise UsageError(f"{place}: no such file")
        module_spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert module_spec
        assert module_spec.loader
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module  # dataclasses look themselves up there
        with _imported_from(os.path.dirname(os.path.abspath(place))):
            module_spec.loader.exec_module(module)
        return module
    if place.startswith("."):
        raise UsageError(f"{place}: relative modules are not looked up; give the whole name")
    with _imported_from(os.getcwd()):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(f"{place}: no module named {error.name!r}") from None


@contextlib.contextmanager
def _imported_from(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def pack_graphs(
    source: str | Iterable[Data],
    destination: str | os.PathLike[str],
    *,
    shard_size: int | str = "64MB",
    shuffle: bool = True,
    seed: int = 0,
    allow_empty: bool = False,
    allow_nan: bool = False,
    narrow: bool = False,
    on_error: OnError = "raise",
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Pack graphs into shards, each as one part `graph`; keys are their numbers.

    Args:
        source: An iterable of PyG `Data`, or `module:callable` or `file.py:callable` of one.
        destination: Folder or URL; it must hold nothing yet.
        shard_size: Bytes of a shard, a number or such as "64MB" (decimal).
        shuffle: Pack in random order, where the source has a length and can be indexed.
        seed: Of that order.
        allow_empty: Take graphs without nodes.
        allow_nan: Take NaN and infinity in fields.
        narrow: Keep integers in as few bytes as each graph's values allow; batches have them in
            their own dtype again, but other readers of the tars see the narrow one.
        on_error: "raise", or "skip" to leave out what can't be packed.
        overwrite: Replace the dataset that lies there.
        storage_options: For fsspec.
        progress: Called with samples done, samples in all, and bytes done.

    Returns:
        What was done.

    Raises:
        SampleError: A graph can't be packed, and `on_error` is "raise"; named by its number.
        UsageError: The destination is not empty, or an argument breaks its rule.
    """
    graphs = Graphs(
        graphs_of(source) if isinstance(source, str) else source,
        seed=seed if shuffle else None,
        allow_empty=allow_empty,
        allow_nan=allow_nan,
        narrow=narrow,
    )
    writer = ShardWriter(
        destination,
        shard_size=shard_size,
        codecs=graphs.codecs,
        overwrite=overwrite,
        storage_options=storage_options,
    )
    summary = pack(graphs, writer, on_error=on_error, progress=progress)
    summary.notes += _widened(writer.manifest.parts["graph"].schema)
    return summary


def _widened(schema: Mapping[str, Any]) -> list[str]:
    """What to say of edges that were narrower than PyG's operators take them."""
    return [
        f"{name} was {spec['was']} in some graphs, and is kept as {spec['dtype']}"
        for name, spec in schema["fields"].items()
        if "was" in spec
    ]
