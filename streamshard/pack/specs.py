"""What a graph source is called: a spec on the command line, or a path.

molecules.csv       with --smiles COLUMN, and --target COLUMN for each target
graphs.jsonl        one JSON object a line; both may be URLs, and compressed (.gz, .bz2, .xz)
folder/             .pt files
module:callable     or file.py:callable; --arg NAME=VALUE for each of its arguments
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from streamshard.errors import UsageError
from streamshard.pack.callables import callable_of
from streamshard.pack.graph_files import GraphReader
from streamshard.pack.jsonl import JsonlGraphs
from streamshard.pack.molecules import Molecules
from streamshard.pack.pt_files import PtFolder
from streamshard.pack.rows import kind_of
from streamshard.store.base import redact

KINDS = "a .csv with --smiles, a .jsonl, a folder of .pt files, module:callable or file.py:callable"


def graphs_of(
    spec: str,
    *,
    smiles: str | None = None,
    targets: Sequence[str] = (),
    args: Mapping[str, Any] | None = None,
) -> GraphReader | Iterable[Any]:
    """What a spec stands for.

    Args:
        spec: See the module.
        smiles: The column of SMILES, for a `.csv`.
        targets: The columns of numbers that become `y`, for a `.csv`.
        args: Of the callable: a function, or a class such as a PyG dataset.

    Raises:
        UsageError: The spec is of no such kind, leads nowhere, or the other arguments go with
            another kind.
        PackError: There is nothing to pack in it.
        StoreError: It can't be read.
    """
    suffix = kind_of(spec)
    if suffix != ".csv" and (smiles is not None or targets):
        raise UsageError(f"{redact(spec)}: --smiles and --target are for a .csv")
    is_callable = suffix not in (".csv", ".jsonl") and not os.path.isdir(spec)
    if args and not is_callable:
        raise UsageError(f"{redact(spec)}: --arg is for the callable of module:callable")
    if suffix == ".csv":
        if smiles is None:
            raise UsageError(
                f"{redact(spec)}: which column is the molecule? --smiles COLUMN says it"
            )
        return Molecules(spec, smiles=smiles, targets=targets)
    if suffix == ".jsonl":
        return JsonlGraphs(spec)
    return call_spec(spec, args or {}) if is_callable else PtFolder(spec)


def parse_args(texts: Sequence[str]) -> dict[str, Any]:
    """The arguments of a callable as the command line has them: JSON where it is JSON, else text.

    >>> parse_args(["root=data", "name=MUTAG", "use_node_attr=true"])
    {'root': 'data', 'name': 'MUTAG', 'use_node_attr': True}
    """
    args: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in args:
            raise UsageError(f"--arg {text!r}: NAME=VALUE is wanted, each name once")
        try:
            args[name] = json.loads(value)
        except ValueError:
            args[name] = value
    return args


def call_spec(spec: str, args: Mapping[str, Any]) -> Iterable[Any]:
    """What the callable of a spec returns.

    Args:
        spec: `module:callable` or `file.py:callable`; the current folder is looked in too.
        args: Of the callable.

    Raises:
        UsageError: The spec does not lead to a callable that takes these arguments, or what it
            returns is not several graphs.
    """
    function = callable_of(spec, f"is not a graph source; {KINDS} is")
    _check_args(spec, function, args)
    graphs = function(**args)
    readable = isinstance(graphs, Iterable) or hasattr(graphs, "__getitem__")
    if hasattr(graphs, "__cat_dim__") or not readable:
        raise UsageError(f"{spec} returned a {type(graphs).__name__}, not an iterable of graphs")
    return graphs  # type: ignore[no-any-return]


def _check_args(spec: str, function: Callable[..., Any], args: Mapping[str, Any]) -> None:
    """Refuse arguments before the call, whose own errors come through as they are."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # what is written in C may have none
        return
    try:
        signature.bind(**args)
    except TypeError as error:
        raise UsageError(f"{spec}: {error}; --arg NAME=VALUE gives arguments") from None
