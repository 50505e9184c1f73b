"""PyG graphs to shards."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Unpack

from streamshard.codec.graph import GraphCodec
from streamshard.codec.pyg import without_others
from streamshard.errors import SampleError, UsageError
from streamshard.pack.choose import globbed
from streamshard.pack.deliver import deliver
from streamshard.pack.encode import KEY
from streamshard.pack.graph_files import GraphFiles, GraphReader
from streamshard.pack.job import Summary
from streamshard.pack.options import (
    PackOptions,
    check_names,
    globs_of,
    reachable,
    seed_of,
)
from streamshard.pack.sources import Sample, pack_order
from streamshard.pack.specs import graphs_of
from streamshard.shard.manifest import Manifest
from streamshard.store.base import redact

if TYPE_CHECKING:
    from torch_geometric.data import Data

_FEW = 5_000  # graphs in files that are encoded before another process has imported PyG


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

    def __init__(self, graphs: Iterable[Data], *, seed: int | None, codec: GraphCodec) -> None:
        """Take the graphs.

        Args:
            graphs: Anything that can be iterated; shuffled only where it has a length and can be
                indexed, since a stream would have to be held in memory for that.
            seed: Of the order in which samples are packed; None keeps the order.
            codec: Encodes graphs, and refuses what it is not to allow.
        """
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
    def key(given: tuple[str, Data]) -> str:
        """See `KeyedSource`."""
        return given[0]

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
        return self.after(0)

    def after(self, place: int) -> Iterator[tuple[str, Data]]:
        """Those from one on; the others are not looked at, which may lie on a disk."""
        width = max(6, len(str(len(self._order) - 1)))
        order = itertools.islice(self._order, place, None)
        return ((f"{number:0{width}d}", self._graphs[number]) for number in order)


def _as_source(graphs: Any, *, seed: int | None, codec: GraphCodec) -> Graphs | GraphFiles:
    if isinstance(graphs, GraphReader):
        return GraphFiles(graphs, split=Graphs.load, seed=seed, codec=codec)
    return Graphs(graphs, seed=seed, codec=codec)


def pack_graphs(
    source: str | os.PathLike[str] | Iterable[Data],
    destination: str | os.PathLike[str],
    *,
    smiles: str | None = None,
    targets: Sequence[str] = (),
    args: Mapping[str, Any] | None = None,
    shard_size: int | str = "64MB",
    allow_empty: bool = False,
    allow_nan: bool = False,
    narrow: bool = False,
    **options: Unpack[PackOptions],
) -> Summary:
    """Pack graphs into shards, each as one part `graph`; keys are their numbers.

    Args:
        source: Graphs: an iterable of PyG `Data`, a PyG dataset, `ClusterData`. Or where they are:
            a `.csv` of molecules, a `.jsonl`, a folder of `.pt` files, or `module:callable` or
            `file.py:callable`, a function that returns graphs or a dataset's class.
        destination: Folder or URL; it must hold nothing yet.
        smiles: The column of a `.csv` that holds the molecule.
        targets: The columns of a `.csv` that become `y`.
        args: Arguments of the callable.
        shard_size: Bytes of a shard, a number or such as "64MB" (decimal).
        allow_empty: Take graphs without nodes.
        allow_nan: Take NaN and infinity in fields.
        narrow: Keep integers in as few bytes as each graph's values allow; batches have them in
            their own dtype again, but other readers of the tars see the narrow one.
        **options: Those of every pack: `shuffle`, `include`, `map`, `split`, `on_error`, `resume`,
            `workers` and more, see `ss.PackOptions`. Patterns are of keys, the graphs' numbers.
            Graphs are shuffled where the source has a length and can be indexed.

    Returns:
        What was done.

    Raises:
        SampleError: A graph can't be packed, and `on_error` is "raise"; named by its number and,
            where it comes from a file, by its place there.
        PackError: There are no graphs where they should be, another pack writes to the destination,
            or the one to go on with is of another source or other options.
        UsageError: The destination is not empty, or an argument breaks its rule.
    """
    check_names(options)
    spec = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if spec is None and (smiles is not None or targets or args):
        raise UsageError("smiles=, targets= and args= go with a source that is a path or spec")
    found = (
        source
        if spec is None
        else graphs_of(reachable(spec, options), smiles=smiles, targets=targets, args=args)
    )
    if options.get("split") and isinstance(found, Iterator):
        raise UsageError("graphs that can be read only once can't be split; give a list of them")
    graphs = _as_source(
        found,
        seed=seed_of(options),
        codec=GraphCodec(allow_empty=allow_empty, allow_nan=allow_nan, narrow=narrow),
    )
    few = isinstance(graphs, GraphFiles) and len(graphs.inputs()) < _FEW
    if few and options.get("workers") is None:
        options["workers"] = 0
    return deliver(
        globbed(graphs, globs_of(options)),
        destination,
        portable=graphs.portable,
        shard_size=shard_size,
        about={
            "source": type(source).__name__ if spec is None else _name_of(spec),
            "smiles": smiles,
            "targets": list(targets),
            "args": _digest(args),
            "allow_empty": allow_empty,
            "allow_nan": allow_nan,
            "narrow": narrow,
        },
        remark=_widened,
        **options,
    )


def _name_of(spec: str) -> str:
    """A source by a name that does not depend on the folder we are in, without secrets."""
    return os.path.abspath(spec) if os.path.exists(spec) else redact(spec)


def _digest(args: Mapping[str, Any] | None) -> str | None:
    """Arguments, to be compared; they may hold secrets."""
    if not args:
        return None
    text = json.dumps(dict(args), sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _widened(manifest: Manifest) -> list[str]:
    """What to say of edges that were narrower than PyG's operators take them."""
    part = manifest.parts.get("graph")
    return [
        f"{name} was {spec['was']} in some graphs, and is kept as {spec['dtype']}"
        for name, spec in (part.schema["fields"].items() if part else ())
        if "was" in spec
    ]
