from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from webdataset.autodecode import decoders

from streamshard.codec.registry import codec_of, part_of, suffix_of
from tests.codec.pictures import encoded, picture, samples

SUFFIXES = {
    "jpg": "image",
    "JPG".lower(): "image",
    "jpeg": "image",
    "png": "image",
    "webp": "image",
    "seg.png": "image",
    "a.b.tif": "image",
    "txt": "text",
    "caption.txt": "text",
    "transcript": "text",
    "json": "json",
    "meta.json": "json",
    "cls": "int",
    "id": "int",
    "npy": "npy",
    "x.npy": "npy",
    "safetensors": "tensors",
    "weights.safetensors": "tensors",
    "graph.safetensors": "graph",
    "mp4": "bytes",
    "pyd": "bytes",
    "pkl": "bytes",
    "pickle": "bytes",
    "pth": "bytes",
    "pt": "bytes",
    "": "bytes",
    "jpg.gz": "bytes",
}


@pytest.mark.parametrize(("suffix", "name"), SUFFIXES.items())
def test_a_suffix_has_its_codec(suffix: str, name: str) -> None:
    assert codec_of(suffix).name == name


def test_only_a_graphs_part_is_not_its_suffix() -> None:
    assert part_of("graph.safetensors") == "graph"
    assert suffix_of("graph") == "graph.safetensors"
    for suffix in SUFFIXES:
        assert suffix_of(part_of(suffix)) == suffix
        if suffix != "graph.safetensors":
            assert part_of(suffix) == suffix


@pytest.mark.parametrize(
    ("suffixes", "data"),
    [
        (["txt", "text", "transcript"], "grün".encode()),
        (["cls", "cls2", "index", "inx", "id"], b"17"),
        (["json", "jsn"], b'{"a": [1, 2.5, null]}'),
    ],
)
def test_values_are_those_of_webdatasets_default_decoders(suffixes: list[str], data: bytes) -> None:
    for suffix in suffixes:
        assert codec_of(suffix).decode(data) == decoders[suffix](data)


def test_arrays_are_those_of_webdatasets_default_decoders() -> None:
    file = io.BytesIO()
    np.save(file, np.arange(6.0).reshape(2, 3))
    expected = decoders["npy"](file.getvalue())
    np.testing.assert_array_equal(codec_of("npy").decode(file.getvalue()).numpy(), expected)


def valid_parts() -> dict[str, bytes]:
    tensors = {"x": torch.zeros(3, 2), "num_nodes": torch.tensor(3)}
    return {
        **{suffix: samples()[suffix] for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif")},
        "txt": b"text",
        "json": b"[1]",
        "cls": b"1",
        "npy": codec_of("npy").pack(np.arange(3)).data,
        "safetensors": codec_of("safetensors").pack(tensors).data,
        "graph.safetensors": codec_of("safetensors").pack(tensors).data,
        "bin": b"bytes",
    }


@pytest.mark.parametrize("suffix", valid_parts())
def test_no_codec_reaches_for_pickle(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = valid_parts()[suffix]
    codec_of(suffix).decode(data)  # imports what it needs

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was unpickled")

    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, refuse)
    codec_of(suffix).decode(data)
    codec_of(suffix).pack(data)


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [*SUFFIXES, "npz", "pickle.npy", "graph.pt"])
def test_no_codec_runs_what_a_pickle_holds(suffix: str, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "sings")
    zipped, plain = io.BytesIO(), io.BytesIO()
    torch.save({"x": canary}, zipped)
    np.save(plain, np.array([canary], dtype=object), allow_pickle=True)
    for data in (pickle.dumps(canary), zipped.getvalue(), plain.getvalue()):
        for read in (codec_of(suffix).decode, codec_of(suffix).pack):
            try:
                found = read(data)
            except ValueError:
                continue
            assert codec_of(suffix).name == "bytes"
            assert data in (found, getattr(found, "data", None))
    assert list(tmp_path.iterdir()) == []


def test_a_png_by_any_suffix_is_read_by_its_bytes() -> None:
    data = encoded(picture(4, 5), "PNG")
    assert codec_of("jpg").decode(data).shape == (3, 4, 5)
