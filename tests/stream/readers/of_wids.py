"""webdataset's `wids` (up to 0.2) over a dataset: FOLDER; its samples as one line of JSON."""

import hashlib
import json
import sys


def main(folder: str) -> None:
    import wids

    found = wids.ShardListDataset(f"{folder}/.streamshard/wids.json", transformations=[])
    assert sorted(wids.ShardedSampler(found)) == list(range(len(found)))
    samples = []
    for number in range(len(found)):
        sample = found[number]
        parts = {
            name[1:]: hashlib.sha256(value.read()).hexdigest()
            for name, value in sample.items()
            if not name.startswith("__")
        }
        samples.append((sample["__key__"], parts))
    print(json.dumps(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
