"""Hugging Face's `datasets` over some tars: FOLDER [PATTERN]; its samples as one line of JSON."""

import hashlib
import json
import sys
from typing import Any


def in_bytes(value: Any) -> bytes:
    """What a part was before it was given a type."""
    if isinstance(value, dict):
        value = value["bytes"]  # of an image
    return value if isinstance(value, bytes) else str(value).encode()


def main(folder: str, pattern: str | None = None) -> None:
    import datasets

    found = datasets.load_dataset(folder, data_files=pattern, split="train", streaming=True)
    samples = [
        (
            sample["__key__"],
            {
                name: hashlib.sha256(in_bytes(value)).hexdigest()
                for name, value in sample.items()
                if not name.startswith("__")
            },
        )
        for sample in found.decode(False)
    ]
    print(json.dumps(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
