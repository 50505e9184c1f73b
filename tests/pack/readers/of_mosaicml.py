"""MDS as mosaicml-streaming writes and reads it: of_mosaicml.py OUT SAMPLES [COMPRESSION...]

Run in its own environment (tools/peers mds). Writes OUT/encodings, with a column of every encoding
that is safe, and OUT/COMPRESSION for each one named. Answers, as JSON, for each folder what its
reader makes of every sample, as `told` has it.
"""

import hashlib
import importlib.util
import io
import json
import shutil
import sys
import types
from decimal import Decimal
from pathlib import Path

import numpy as np
from PIL import Image

# The package's __init__ imports torchvision and transformers, which the formats do without.
_root = Path(importlib.util.find_spec("streaming").origin).parent
for _name, _folder in (("streaming", _root), ("streaming.base", _root / "base")):
    sys.modules[_name] = types.ModuleType(_name)
    sys.modules[_name].__path__ = [str(_folder)]

from streaming.base.compression import decompress  # noqa: E402
from streaming.base.format import reader_from_json  # noqa: E402
from streaming.base.format.mds.writer import MDSWriter  # noqa: E402

NUMBERS = [f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]
COLUMNS = {
    "image": "jpeg",
    "depth": "png",
    "mask": "pil",
    "label": "int",
    "raw": "bytes",
    "caption": "str",
    "long": "str_int",
    "ratio": "str_float",
    "price": "str_decimal",
    "meta": "json",
    "any": "ndarray",
    "tokens": "ndarray:uint16",
    "grid": "ndarray:float32:2,3",
    "frames": "jpeg_array",
    "clips": "jpegarray",
    "jpegs": "list[jpeg]",
    "pngs": "list[png]",
    "pils": "list[pil]",
    **{name: name for name in (*NUMBERS, *FLOATS)},
}


def picture(seed, size=(9, 7), mode="RGB"):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)


def jpeg(seed):
    file = io.BytesIO()
    picture(seed).save(file, "JPEG")
    return file.getvalue()


def sample(number):
    rng = np.random.default_rng(number)
    dtype = (*NUMBERS, *FLOATS)[number % 11]
    shape = (300, 1) if number % 3 == 1 else tuple(rng.integers(1, 4, 1 + number % 4))
    return {
        "image": picture(number),
        "depth": picture(100 + number, mode="L"),
        "mask": picture(200 + number, mode=("RGB", "L", "RGBA")[number % 3]),
        "label": number % 3 - 1,
        "raw": rng.bytes(number),
        "caption": "naïve " * number,
        "long": -(10**30) + number,
        "ratio": 0.1 * number,
        "price": Decimal(f"{number}.50"),
        "meta": {"a": [1, None, {"b": "ü"}], "n": number},
        "any": rng.integers(0, 100, shape).astype(dtype),
        "tokens": rng.integers(0, 60_000, 1 + number).astype("uint16"),
        "grid": rng.random((2, 3), np.float32),
        "frames": [jpeg(number + n) for n in range(1 + number % 2)],
        "clips": [jpeg(number)],
        "jpegs": [picture(number + n) for n in range(number % 3)],
        "pngs": [picture(number)],
        "pils": [picture(number, mode="L")],
        **{name: int(np.iinfo(name).max) - number for name in NUMBERS},
        **{name: (-0.1, float("inf"), float("nan"))[number % 3] for name in FLOATS},
    }


def told(value):
    """A value in few words of JSON: bytes as a digest, floats to the last bit."""
    if isinstance(value, Image.Image):
        if value.format:
            return ["file", hashlib.sha256(value.fp.getvalue()).hexdigest()]
        return ["pixels", value.mode, [*value.size], hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, np.ndarray):
        return [value.dtype.name, [*value.shape], hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, float | np.floating):
        return float(value).hex()
    if isinstance(value, list):
        return [told(one) for one in value]
    if isinstance(value, dict):
        return {name: told(one) for name, one in value.items()}
    return int(value) if isinstance(value, np.integer) else value if value is None else plain(value)


def plain(value):
    return str(value) if isinstance(value, Decimal) else value


def read(folder):
    samples = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        packed, raw = shard["zip_data"], shard["raw_data"]["basename"]
        if packed:
            data = decompress(shard["compression"], (folder / packed["basename"]).read_bytes())
            (folder / raw).write_bytes(data)
        samples += [told(one) for one in reader_from_json(str(folder), None, shard)]
        if packed:
            (folder / raw).unlink()
    return samples


def write(folder, columns, samples, compression):
    shutil.rmtree(folder, ignore_errors=True)
    options = {"compression": compression, "hashes": ["sha1", "xxh64"]}
    limit = 1 << 15 if len(columns) > 2 else 500
    with MDSWriter(columns=columns, out=str(folder), size_limit=limit, **options) as writer:
        for one in samples:
            writer.write({name: one[name] for name in columns})


if __name__ == "__main__":
    out, count = Path(sys.argv[1]), int(sys.argv[2])
    write(out / "encodings", COLUMNS, map(sample, range(count)), None)
    for compression in sys.argv[3:]:
        columns = {name: COLUMNS[name] for name in ("caption", "label")}
        write(out / compression, columns, map(sample, range(count)), compression)
    print(json.dumps({name: read(out / name) for name in ("encodings", *sys.argv[3:])}))
