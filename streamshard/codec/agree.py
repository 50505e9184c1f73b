"""Whether index and schema agree with each other, and with the bytes of a part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamshard.codec.base import Facts
from streamshard.codec.graph import GraphCodec, read_layout
from streamshard.codec.narrow import SIGNED, width_of
from streamshard.codec.pyg import NODES, joined, parted
from streamshard.codec.registry import codec_of
from streamshard.codec.tensor import decode_tensors

Column = NDArray[Any]  # one integer a sample
Mask = NDArray[np.bool_]  # one bool a sample


def contradictions(
    suffix: str, schema: Mapping[str, Any], facts: Mapping[str, Column], sizes: Column
) -> Iterator[tuple[int, str]]:
    """Rows whose facts can't be true of a part with that schema, and why.

    Args:
        suffix: Of the part.
        schema: From the manifest.
        facts: What the index tells of the part, by name.
        sizes: Bytes of the part in each row; -1 where it is missing.
    """
    rules = {"image": _image, "graph": _graph}.get(codec_of(suffix).name)
    if rules is None:
        return
    try:
        found = list(rules(schema, facts, sizes))
    except KeyError as error:
        found = [(np.ones(len(sizes), bool), f"the index lacks the fact {error}")]
    for mask, reason in found:
        yield from ((row, reason) for row in np.flatnonzero(mask & (sizes >= 0)).tolist())


def _image(
    schema: Mapping[str, Any], facts: Mapping[str, Column], sizes: Column
) -> Iterator[tuple[Mask, str]]:
    if not schema.get("size"):
        return
    height, width = schema["size"]
    odd = (facts["height"] != height) | (facts["width"] != width)
    yield odd, f"the index has another size than the manifest's {height}x{width}"


def _graph(
    schema: Mapping[str, Any], facts: Mapping[str, Column], sizes: Column
) -> Iterator[tuple[Mask, str]]:
    counts = [name for name in facts if not name.startswith(("inc:", "width:"))]
    for name in counts:
        yield facts[name] < 0, f"the index has {name} below 0"
    edges = facts["edges"] - sum(
        facts[f"rows:{name}"] for name in schema["fields"] if parted(name)[1] == "edge_index"
    )
    yield edges != 0, "the index has edges that its edge_index rows don't add up to"
    types = [store for store in schema[NODES] if store]
    if types:
        nodes = facts["nodes"] - sum(facts[f"nodes:{store}"] for store in types)
        yield nodes != 0, "the index has nodes that those of its types don't add up to"
    nbytes = facts["base"] + 8 * len(schema[NODES])
    for name, spec in schema["fields"].items():
        nbytes = nbytes + _field_bytes(name, spec, facts)
    yield nbytes != sizes, "its fields, as the manifest and the index have them, are of other size"


def _field_bytes(name: str, spec: Mapping[str, Any], facts: Mapping[str, Column]) -> Column:
    """Bytes of a field in each row."""
    width: Any = getattr(torch, spec["dtype"]).itemsize
    if f"width:{name}" in facts:
        widths = facts[f"width:{name}"].astype(np.int64)
        width = np.where(widths > 0, widths & (SIGNED - 1), width)  # none: not narrowed
    others = math.prod(size for size in spec["shape"] if size is not None)
    rows: Any = facts[f"rows:{name}"].astype(np.int64) if spec["cat_dim"] is not None else 1
    return np.asarray(width * others * rows)


def facts_of(suffix: str, data: bytes, schema: Mapping[str, Any]) -> Facts:
    """What an index must tell of a part with these bytes, but for increments of graphs.

    Increments follow the class that a graph had, which bytes don't tell.

    Raises:
        ValueError: The bytes are no such part, or not as the schema says.
    """
    codec = codec_of(suffix)
    if isinstance(codec, GraphCodec):
        return _graph_facts(data, schema)
    packed = codec.pack(data)
    if {**schema, **codec.merge(schema, packed.schema)} != schema:
        raise ValueError(f"the manifest says {dict(schema)}, the data {packed.schema}")
    return packed.facts


def _graph_facts(data: bytes, schema: Mapping[str, Any]) -> Facts:
    tensors = decode_tensors(data)
    base, layout = read_layout(data)
    if layout != schema["layout"]:
        raise ValueError(f"its bytes lie in the order {layout}, not {schema['layout']}")
    names = {store: f"nodes:{store}" if store else "nodes" for store in schema[NODES]}
    facts: Facts = {name: int(tensors[joined(store, NODES)]) for store, name in names.items()}
    facts["nodes"] = sum(facts[name] for name in names.values())
    facts["base"], facts["edges"] = base, 0
    for name, spec in schema["fields"].items():
        tensor = tensors[name]
        _check_field(name, spec, tensor)
        if spec["cat_dim"] is not None:
            facts[f"rows:{name}"] = tensor.shape[spec["cat_dim"]]
        if spec.get("narrow"):
            facts[f"width:{name}"] = width_of(tensor.dtype)
        if parted(name)[1] == "edge_index":
            facts["edges"] += tensor.shape[1]
    return facts


def _check_field(name: str, spec: Mapping[str, Any], tensor: torch.Tensor) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = [*tensor.shape]
    if dtype != spec["dtype"] and not spec.get("narrow"):
        raise ValueError(f"field {name!r} is {dtype}, the manifest says {spec['dtype']}")
    if len(shape) != len(spec["shape"]) or any(
        size not in (None, found) for size, found in zip(spec["shape"], shape, strict=True)
    ):
        raise ValueError(f"field {name!r} has shape {shape}, the manifest says {spec['shape']}")
