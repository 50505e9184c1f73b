"""A folder of `.pt` files with graphs, read without unpickling anything but tensors and PyG's data.

This is the only file that calls `torch.load`, and always with `weights_only=True`.
"""

from __future__ import annotations

import functools
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from streamshard.codec.pyg import check_name
from streamshard.errors import PackError
from streamshard.pack.files import Files, Stamp, check_unchanged, stamp_of
from streamshard.pack.graph_files import GraphReader
from streamshard.pack.sources import pack_order, walk

if TYPE_CHECKING:
    from torch_geometric.data import Data

_REMEDY = "save Data, HeteroData, a dict of tensors or a list of these, or give module:callable"


class PtPlace(NamedTuple):
    """One graph of one file."""

    path: str
    number: int
    alone: bool  # in its file
    stamp: Stamp | None = None  # of the file, when it was listed

    def __str__(self) -> str:
        return self.path if self.alone else f"{self.path}, graph {self.number}"


class PtFolder(GraphReader):
    """The `.pt` files below a folder in sorted order, each with a graph or a list of graphs."""

    def __init__(self, root: str) -> None:
        """List the folder and count the graphs in each file, which reads the files' outlines.

        Args:
            root: A local folder.

        Raises:
            PackError: There is no `.pt` file in it.
        """
        names = [os.path.join(folder, name) for folder, files in walk(root) for name in files]
        self._paths = sorted(name for name in names if name.endswith(".pt"))
        if not self._paths:
            raise PackError(f"{root}: no .pt file there, {len(names)} other files")
        self.notes = []
        if others := len(names) - len(self._paths):
            self.notes.append(f"{others} files that are not .pt were left out")
        self._stamps = [stamp_of(path) for path in self._paths]
        self._ends = np.cumsum(np.array([_count(path) for path in self._paths], np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> PtPlace:
        """See `GraphReader`."""
        file = int(np.searchsorted(self._ends, number, side="right"))
        begin, end = self._bounds(file)
        alone = end - begin == 1
        return PtPlace(self._paths[file], number - begin, alone, self._stamps[file])

    def _bounds(self, file: int) -> tuple[int, int]:
        """The numbers of a file's graphs."""
        return int(self._ends[file - 1]) if file else 0, int(self._ends[file])

    def order(self, seed: int | None) -> Iterator[int]:
        """See `GraphReader`: files are shuffled, then the graphs in each, which is loaded once."""
        if seed is not None and len(self) > len(self._paths):
            self.notes.append("shuffled file by file, and in each: some files hold several graphs")
        try:
            for file in pack_order(len(self._paths), seed):
                begin, end = self._bounds(file)
                seed_here = None if seed is None else seed + file
                yield from (begin + row for row in pack_order(end - begin, seed_here))
        finally:
            _graphs_of.cache_clear()

    def files(self, seed: int | None) -> Files:
        """See `GraphReader`."""
        order = pack_order(len(self._paths), seed)
        return Files.of(
            [self._paths[n] for n in order],
            [self._stamps[n] for n in order],
            one_each=len(self) == len(self._paths),
        )

    @property
    def read(self) -> Any:
        """See `GraphReader`."""
        return _read


def _read(place: PtPlace) -> tuple[Data, dict[str, Any]]:
    return _as_graph(_graphs_of(place.path, place.stamp)[place.number]), {}


@functools.lru_cache(maxsize=1)  # places of one file come one after another
def _graphs_of(path: str, stamp: Stamp | None) -> list[Any]:
    _check_sums(path)
    value = _load(path, mmap=False)
    with open(path, "rb") as file:
        check_unchanged(file.fileno(), stamp)
    graphs = value if isinstance(value, list) else [value]
    if not graphs:
        raise ValueError("an empty list; remove the file")
    return graphs


def _count(path: str) -> int:
    """The graphs in a file; a file that can't be read counts as one, which fails when it is due."""
    try:
        value = _load(path, mmap=zipfile.is_zipfile(path))
    except (ValueError, OSError):
        return 1
    return len(value) or 1 if isinstance(value, list) else 1


def _check_sums(path: str) -> None:
    """Compare the checksums in a file with its bytes, which PyTorch does not.

    Raises:
        ValueError: One is wrong.
    """
    if not zipfile.is_zipfile(path):  # the format before PyTorch 1.6, which has none
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"damaged: {error}") from None
    if wrong:
        raise ValueError(f"damaged: {wrong} in it has another CRC-32 than the file says")


def _load(path: str, *, mmap: bool) -> Any:
    """What a file holds, with tensors in host memory.

    Raises:
        ValueError: It holds something else than tensors, containers and PyG's data, or is damaged.
    """
    _allow_data()
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # the bytes are anyone's, and so is what they lead to
        # PyTorch's own text goes on to advise loading it without the check.
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise ValueError(f"it needs {found[1]}, which is not unpickled; {_REMEDY}") from None
        raise ValueError(
            f"not a whole file of torch.save with tensors only ({type(error).__name__}); {_REMEDY}"
        ) from None


def _allow_data() -> None:
    """Let the check pass what `Data` and `HeteroData` consist of; PyG registers only themselves."""
    from torch_geometric.data import data, hetero_data, storage

    torch.serialization.add_safe_globals(
        [
            *(data.Data, data.DataEdgeAttr, data.DataTensorAttr, hetero_data.HeteroData),
            *(storage.BaseStorage, storage.GlobalStorage, storage.NodeStorage, storage.EdgeStorage),
        ]
    )


def _as_graph(value: Any) -> Data:
    from torch_geometric.data import Data, HeteroData

    if isinstance(value, Data | HeteroData):
        return value
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        tensors = [name for name, field in value.items() if isinstance(field, torch.Tensor)]
        for name in tensors:
            check_name(name)
        if tensors:
            return Data(**value)
        raise ValueError(f"a dict without a tensor; {_REMEDY}")
    raise ValueError(f"a {type(value).__name__}, which is no graph; {_REMEDY}")
