from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from streamshard.codec.base import Form
from streamshard.codec.tensor import NpyCodec, TensorsCodec, decode_tensors

NPY, TENSORS = NpyCodec(), TensorsCodec()
DTYPES = [
    *(np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64),
    *(np.float16, np.float32, np.float64, np.complex64),
]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    )
)


def saved(array: NDArray[Any], allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def npy_header(shape: tuple[int, ...], descr: Any = "<f4") -> bytes:
    """The front of an .npy file that claims this shape."""
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def assert_same(tensor: torch.Tensor, array: NDArray[Any]) -> None:
    np.testing.assert_array_equal(tensor.numpy(), array, strict=True)


class TestNpy:
    """One array, in numpy's format."""

    @given(ARRAYS)
    def test_the_round_trip_keeps_type_shape_and_values(self, array: NDArray[Any]) -> None:
        packed = NPY.pack(array)
        assert_same(NPY.decode(packed.data), array)
        np.testing.assert_array_equal(np.load(io.BytesIO(packed.data)), array, strict=True)
        assert packed.schema["shape"] == list(array.shape)
        assert packed.schema["dtype"] == str(array.dtype)

    @given(ARRAYS)
    def test_tensors_and_files_of_numpys_pack_alike(self, array: NDArray[Any]) -> None:
        data = saved(array)
        assert NPY.pack(data).data == data
        packed = NPY.pack(torch.from_numpy(array))
        assert packed == NPY.pack(array) == NPY.pack(data)

    def test_arrays_in_any_memory_order_keep_their_values(self) -> None:
        array = np.arange(24).reshape(2, 3, 4)
        for view in (array.T, array[:, ::2], array[::-1], np.asfortranarray(array)):
            assert_same(NPY.decode(NPY.pack(view).data), view)
        assert_same(NPY.decode(saved(np.asfortranarray(array))), array)

    def test_a_tensor_with_a_gradient_is_detached(self) -> None:
        tensor = torch.arange(3.0, requires_grad=True)
        assert torch.equal(NPY.decode(NPY.pack(tensor).data), tensor.detach())

    def test_pickled_objects_are_refused_unread(self, tmp_path: Any) -> None:
        class Canary:
            def __reduce__(self) -> Any:
                return (tmp_path.joinpath("sings").mkdir, ())

        data = saved(np.array([Canary()], dtype=object), allow_pickle=True)
        for read in (NPY.decode, NPY.pack):
            with pytest.raises(ValueError, match="allow_pickle=False"):
                read(data)
        with pytest.raises(ValueError, match="Object arrays cannot be saved"):
            NPY.pack(np.array([{}], dtype=object))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "array",
        [np.array(["a"]), np.array([b"a"]), np.zeros(2, ">f4"), np.zeros(1, [("a", "<f4")])],
        ids=["text", "bytes", "big-endian", "record"],
    )
    def test_what_no_tensor_holds_is_refused(self, array: NDArray[Any]) -> None:
        for value in (array, saved(array)):
            with pytest.raises(ValueError, match="array"):
                NPY.pack(value)

    def test_every_cut_is_refused(self) -> None:
        data = saved(np.arange(10))
        for cut in range(len(data)):
            for read in (NPY.decode, NPY.pack):
                with pytest.raises(ValueError):  # noqa: PT011 - numpy's own words
                    read(data[:cut])

    @pytest.mark.parametrize(
        "data",
        [b"", b"garbage", b"\x93NUMPY\x09\x00", b"\x80\x04N.", b"PK\x03\x04" + bytes(30)],
        ids=["nothing", "garbage", "version", "pickle", "zip"],
    )
    def test_what_is_no_array_is_refused(self, data: bytes) -> None:
        for read in (NPY.decode, NPY.pack):
            with pytest.raises(ValueError):  # noqa: PT011
                read(data)

    def test_several_arrays_in_a_zip_are_refused(self) -> None:
        file = io.BytesIO()
        np.savez(file, a=np.zeros(3))
        with pytest.raises(ValueError, match="not an array"):
            NPY.decode(file.getvalue())

    @pytest.mark.parametrize(
        "shape", [(10**15,), (10**30,), (-1,), (2**62, 4), (10**12, 0, 10**12)]
    )
    def test_a_shape_that_the_bytes_do_not_fill_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            NPY.decode(npy_header(shape) + bytes(64))

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 127), st.integers(1, 255))
    def test_changed_bytes_of_a_header_give_a_tensor_or_a_value_error(
        self, at: int, change: int
    ) -> None:
        data = bytearray(saved(np.arange(10)))
        data[at] ^= change
        with contextlib.suppress(ValueError):
            assert isinstance(NPY.decode(bytes(data)), torch.Tensor)

    def test_arrays_of_one_type_and_shape_are_stacked_and_others_are_not(self) -> None:
        schema, longer, wider = (
            NPY.pack(array).schema for array in (np.zeros(3), np.zeros(4), np.zeros(3, np.float32))
        )
        assert NPY.form(NPY.merge(schema, schema)) == Form(torch.float64, (3,))
        for other in (longer, wider):
            mixed = NPY.merge(schema, other)
            assert NPY.form(mixed) is None
            assert NPY.form(NPY.merge(mixed, schema)) is None


class TestTensors:
    """Several tensors by name, in the safetensors format."""

    @given(st.dictionaries(st.text(max_size=5).filter(lambda n: n != "__metadata__"), ARRAYS))
    def test_the_round_trip_keeps_names_types_shapes_and_values(
        self, arrays: dict[str, NDArray[Any]]
    ) -> None:
        for value in (arrays, {name: torch.from_numpy(a) for name, a in arrays.items()}):
            found = TENSORS.decode(TENSORS.pack(value).data)
            assert found.keys() == arrays.keys()
            for name, array in arrays.items():
                assert_same(found[name], array)

    @pytest.mark.parametrize("with_bfloat16", [False, True])
    def test_bfloat16_bool_scalars_and_views_are_kept(self, with_bfloat16: bool) -> None:
        base = torch.arange(12.0).reshape(3, 4)
        tensors = {
            "scalar": torch.tensor(3),
            "bool": torch.tensor([True, False]),
            "empty": torch.zeros(0, 5),
            "transposed": base.T,
            "strided": base[:, ::2],
        }
        if with_bfloat16:
            tensors["bfloat16"] = torch.arange(3, dtype=torch.bfloat16)
        found = TENSORS.decode(TENSORS.pack(tensors).data)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_tensor_under_two_names_is_kept_twice(self, dtype: torch.dtype) -> None:
        tensor = torch.arange(4).to(dtype)
        found = TENSORS.decode(TENSORS.pack({"a": tensor, "b": tensor}).data)
        assert torch.equal(found["a"], tensor)
        assert torch.equal(found["b"], tensor)

    def test_a_tensor_with_a_gradient_is_detached(self) -> None:
        tensor = torch.arange(3.0, requires_grad=True)
        assert torch.equal(TENSORS.decode(TENSORS.pack({"a": tensor}).data)["a"], tensor.detach())

    @pytest.mark.parametrize("value", [[1, 2], 3, "a", {1: torch.zeros(2)}, {"a": "b"}], ids=repr)
    def test_what_is_no_dict_of_tensors_is_refused(self, value: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            TENSORS.pack(value)

    def test_every_cut_and_garbage_are_refused(self) -> None:
        data = TENSORS.pack({"a": torch.arange(5), "b": torch.zeros(2, 2)}).data
        garbage = [b"garbage", bytes(100), b"\xff" * 100, b"\x02" + bytes(7) + b"{]", b"\x80\x04N."]
        for part in [*(data[:cut] for cut in range(len(data))), *garbage]:
            for read in (TENSORS.decode, TENSORS.pack, decode_tensors):
                with pytest.raises(ValueError, match="not a whole safetensors file"):
                    read(part)

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 160), st.integers(1, 255))
    def test_changed_bytes_of_a_header_give_tensors_or_a_value_error(
        self, at: int, change: int
    ) -> None:
        data = bytearray(TENSORS.pack({"a": torch.arange(5), "b": torch.zeros(2, 2)}).data)
        data[at] ^= change
        try:
            found = TENSORS.decode(bytes(data))
        except ValueError:
            return
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
