"""The columns of Parquet files: what they hold, and a value of Arrow as `MakeSample` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamshard.pack.parquet_files import as_json
from streamshard.pack.roles import Column


def columns_of(schema: Any, features: Mapping[str, Any]) -> list[Column]:
    """The columns of a file.

    Args:
        schema: Arrow's.
        features: What Hugging Face's `datasets` notes of them.
    """
    return [_column(field.name, field.type, features.get(field.name, {})) for field in schema]


def class_names(features: Mapping[str, Any], name: str) -> list[str] | None:
    """The names of the classes, where `datasets` notes them of a column."""
    feature = features.get(name, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return [str(one) for one in names] if isinstance(names, list) else None


def _column(name: str, stored: Any, feature: Mapping[str, Any]) -> Column:
    what = str(stored)
    if _is_bytes(stored):
        return Column(name, "image" if feature.get("_type") == "Image" else "bytes", what)
    plain = _plain(stored)
    if _is_numbers(plain):
        return Column(name, "array", what)
    if _holds_bytes(plain):
        return Column(name, "refused", f"{what} has bytes inside, which no part takes")
    return Column(name, _simple_kind(plain), what, is_label=feature.get("_type") == "ClassLabel")


def _simple_kind(plain: Any) -> Any:
    from pyarrow import types

    if types.is_integer(plain):
        return "integer"
    return "text" if types.is_string(plain) or types.is_large_string(plain) else "value"


def _plain(stored: Any) -> Any:
    """The type of what a file that `copied` made has."""
    import pyarrow as pa

    plain = stored.storage_type if isinstance(stored, pa.BaseExtensionType) else stored
    return plain.value_type if pa.types.is_dictionary(plain) else plain


def _is_binary(stored: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_binary(stored)
        or types.is_large_binary(stored)
        or types.is_fixed_size_binary(stored)
    )


def _is_bytes(stored: Any) -> bool:
    """Whether a type is bytes, or bytes with the path of the file that they come from."""
    from pyarrow import types

    plain = _plain(stored)
    if types.is_struct(plain):
        found = {field.name: field.type for field in plain}
        return set(found) <= {"bytes", "path"} and "bytes" in found and _is_binary(found["bytes"])
    return _is_binary(plain)


def _is_numbers(stored: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(stored) or types.is_large_list(stored)
    if not (is_list or types.is_fixed_size_list(stored)):
        return False
    return bool(types.is_integer(stored.value_type) or types.is_floating(stored.value_type))


def _holds_bytes(stored: Any) -> bool:
    fields = [stored.field(number) for number in range(stored.num_fields)]
    return any(_is_binary(field.type) or _holds_bytes(field.type) for field in fields)


def read_value(scalars: Mapping[str, Any], column: Column) -> Any:
    """The value of a column in a row.

    Raises:
        ValueError: It is none that is packed; the column is named.
    """
    try:
        return value_of(scalars[column.name], column)
    except ValueError as error:
        raise ValueError(f"column {column.name!r}: {error}") from None


def value_of(scalar: Any, column: Column) -> Any:
    """What a scalar of Arrow is worth.

    Raises:
        ValueError: A list of numbers has gaps.
    """
    if not scalar.is_valid:
        return None
    if column.kind in ("image", "bytes"):
        return _bytes_of(scalar.as_py(), column)
    if column.kind == "array":
        if scalar.values.null_count:
            raise ValueError(f"a list of numbers with gaps; --drop {column.name} leaves it out")
        return scalar.values.to_numpy(zero_copy_only=False)
    return as_json(scalar.as_py())


def _bytes_of(value: Any, column: Column) -> bytes | None:
    if not isinstance(value, dict):
        return bytes(value)
    if value["bytes"] is None and value.get("path"):
        raise ValueError(
            f"no bytes, only the path {value['path']}; streamshard pack table --image "
            f"{column.name} takes paths"
        )
    return value["bytes"]  # type: ignore[no-any-return]


def path_of(scalar: Any) -> str:
    """The path beside the bytes of an image.

    Raises:
        ValueError: There is none.
    """
    value = scalar.as_py()
    path = value.get("path") if isinstance(value, dict) else None
    if not path:
        raise ValueError("no path beside the bytes; --keys number needs none")
    return str(path)
