"""The values of one part, sample by sample, to one column of a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from streamshard.codec.base import Form
from streamshard.errors import UsageError
from streamshard.stream.builder import BlockBuilder


def add_formed(builder: BlockBuilder, name: str, form: Form, values: Sequence[Any]) -> None:
    """Add tensors of one known form, stacked."""
    builder.stacked(name, form, [formed(name, form, value) for value in values])


def formed(name: str, form: Form, value: Any) -> torch.Tensor:
    """A tensor of this form; a number or an array as one.

    Raises:
        UsageError: It is another.
    """
    if not isinstance(value, torch.Tensor):
        if not isinstance(value, np.ndarray | np.generic | int | float):
            raise UsageError(
                f"part {name}: a {type(value).__name__} among tensors of shape {form.shape}; give "
                "every sample one kind of value"
            )
        value = torch.as_tensor(value)
    tensor: torch.Tensor = value
    if tensor.dtype != form.dtype or tensor.shape != form.shape:
        raise UsageError(
            f"part {name}: a {tensor.dtype} of shape {tuple(tensor.shape)} among "
            f"{form.dtype} of shape {form.shape}; give every sample one shape, or the decoder "
            "an attribute `form = None`, which makes batches lists"
        )
    return tensor


def add_listed(builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
    """Add values that have no one form, as a list."""
    if all(isinstance(value, torch.Tensor) for value in values):
        builder.ragged(name, values)
    elif all(isinstance(value, str) for value in values):
        builder.strings(name, "text", [value.encode() for value in values])
    elif all(isinstance(value, bytes) for value in values):
        builder.strings(name, "bytes", values)
    else:
        builder.objects(name, values)


class Inferred:
    """Columns of a part whose form nobody declared: what the first value is decides for all.

    Tensors, arrays and numbers are stacked, graphs become a PyG `Batch`, all else a list. The first
    value is remembered, so that a batch without samples has the same type as the others.
    """

    def __init__(self, *, is_list: bool = False) -> None:
        self._form: Form | None = None
        self._is_list = is_list
        self._is_graph = False

    def learn(self, value: Any) -> Any:
        """The value as it is to be collected: numbers and arrays as tensors."""
        if isinstance(value, np.str_):
            value = str(value)
        elif isinstance(value, np.ndarray | np.number | np.bool_):
            array = np.asarray(value)
            native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
            value = torch.from_numpy(native.reshape(array.shape))
        elif isinstance(value, bool | int | float):
            value = torch.tensor(value)
        if isinstance(value, torch.Tensor) and self._form is None and not self._is_list:
            self._form = Form(value.dtype, tuple(value.shape))
        if hasattr(value, "__cat_dim__") and not self._is_list:
            self._is_graph = True
        return value

    def add(self, builder: BlockBuilder, name: str, values: Sequence[Any]) -> None:
        """Add the values that were learned."""
        if self._form is not None:
            add_formed(builder, name, self._form, values)
        elif self._is_graph:
            from torch_geometric.data import Batch

            builder.one(name, Batch.from_data_list(list(values)) if values else Batch())
        else:
            add_listed(builder, name, values)
