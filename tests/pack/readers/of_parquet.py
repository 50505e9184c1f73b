"""Parquet as Hugging Face's `datasets` writes and reads it: of_parquet.py OUT ROWS

Writes OUT/photos-0.parquet and -1 with columns of many kinds. Answers, as JSON, what it reads in
every row, images as it found them and not decoded.
"""

import datetime
import decimal
import hashlib
import io
import json
import sys

import datasets
import numpy as np
from PIL import Image

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "depth": datasets.Image(),
        "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
        "caption": datasets.Value("string"),
        "score": datasets.Value("float32"),
        "seen": datasets.Value("bool"),
        "raw": datasets.Value("binary"),
        "when": datasets.Value("timestamp[us]"),
        "day": datasets.Value("date32"),
        "price": datasets.Value("decimal128(6, 2)"),
        "embedding": datasets.List(datasets.Value("float32"), length=4),
        "tokens": datasets.List(datasets.Value("int32")),
        "boxes": datasets.List({"name": datasets.Value("string"), "at": datasets.Value("int64")}),
        "grid": datasets.Array2D((2, 2), "int32"),
    }
)


def picture(seed, format="JPEG"):
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).save(file, format)
    return file.getvalue()


def row(number):
    return {
        "image": {"bytes": picture(number), "path": f"photos/{number}.v1.jpg"},
        "depth": {"bytes": picture(number, "PNG"), "path": None},
        "label": number % 4 - 1,
        "caption": None if number == 2 else "naïve " * number,
        "score": number / 3,
        "seen": number % 2 == 0,
        "raw": b"\0\xff" * number,
        "when": datetime.datetime(2024, 1, 1, 12, 30, number % 60, 5),
        "day": datetime.date(2024, 1, 1 + number % 28),
        "price": decimal.Decimal(number) / 4,
        "embedding": [number + 0.5, 1, 2, 3],
        "tokens": list(range(number)),
        "boxes": [{"name": "x", "at": number}] * (number % 3),
        "grid": [[number, 1], [2, 3]],
    }


def told(column, value):
    """A value in few words of JSON."""
    if isinstance(value, dict) and "bytes" in value:
        return told(column, value["bytes"])
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, list | dict | None | int | float | str):
        return value
    return str(value)


def main(out, rows):
    samples = [row(number) for number in range(rows)]
    for part, given in enumerate((samples[: rows // 2], samples[rows // 2 :])):
        columns = {name: [one[name] for one in given] for name in FEATURES}
        made = datasets.Dataset.from_dict(columns, features=FEATURES)
        made.to_parquet(f"{out}/photos-{part}.parquet", batch_size=4)
    files = [f"{out}/photos-{part}.parquet" for part in (0, 1)]
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=f"{out}/c")
    assert found.features == FEATURES, found.features
    for column in ("image", "depth"):
        found = found.cast_column(column, datasets.Image(decode=False))
    print(json.dumps([{name: told(name, one[name]) for name in one} for one in found]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
