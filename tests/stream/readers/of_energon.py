"""Megatron-Energon over a dataset as exported: FOLDER; its samples as one line of JSON.

With PREPARED, a copy of the dataset without what was exported, Energon's own `prepare` makes its
files there.
"""

import hashlib
import json
import sys
from pathlib import Path


def read(folder: str) -> list:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        edataclass,
        get_loader,
        get_train_dataset,
        stateless,
    )

    @edataclass
    class Parts(Sample):
        parts: dict

    @stateless
    def cook(sample: dict) -> Parts:
        parts = {name: data for name, data in sample.items() if not name.startswith("__")}
        return Parts(**basic_sample_keys(sample), parts=parts)

    class Encoder(DefaultTaskEncoder):
        cookers = (Cooker(cook),)
        decoder = None

        @stateless
        def batch(self, samples: list) -> list:
            return samples

    dataset = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        shuffle_over_epochs_multiplier=None,
        parallel_shard_iters=1,
        repeat=False,
        task_encoder=Encoder(),
    )
    return [(s.__key__, digests(s.parts)) for batch in get_loader(dataset) for s in batch]


def digests(parts: dict) -> dict:
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


def look_up(folder: str, samples: list) -> None:
    """Every part again, by its key in the table of samples."""
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.indexing import SqliteIndexReader

    tars = sorted(Path(folder).glob("*.tar"))
    index = SqliteIndexReader(EPath(folder) / ".nv-meta" / "index.sqlite")
    for key, parts in samples:
        for name, digest in parts.items():
            at = index.get_sample_part(key, name)
            begin = at.raw_byte_offset
            data = tars[at.tar_file_id].read_bytes()[begin : begin + at.raw_byte_size]
            assert hashlib.sha256(data).hexdigest() == digest
    index.close()


def prepare(folder: str) -> None:
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    names = sorted(path.name for path in Path(folder).glob("*.tar"))
    WebdatasetPreparator.prepare_dataset(
        Path(folder), names, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1
    )


def main(folder: str, prepared: str | None = None) -> None:
    samples = read(folder)
    look_up(folder, samples)
    if prepared is not None:
        prepare(prepared)
    print(json.dumps(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
