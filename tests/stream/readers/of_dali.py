"""DALI over a dataset by its indexes: FOLDER PART...; its samples as one line of JSON."""

import hashlib
import json
import sys
from pathlib import Path


def main(folder: str, *parts: str) -> None:
    from nvidia.dali import fn, pipeline_def

    tars = sorted(Path(folder).glob("*.tar"))

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def read():
        outputs = fn.readers.webdataset(
            paths=[str(path) for path in tars],
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=list(parts),
            missing_component_behavior="error",
            name="reader",
        )
        return tuple(outputs) if len(parts) > 1 else outputs

    pipeline = read()
    pipeline.build()
    samples = []
    for _ in range(pipeline.reader_meta("reader")["epoch_size"]):
        columns = pipeline.run()
        source = columns[0][0].source_info()  # tar, offset and name of the member
        key = source.rpartition(":")[2].removesuffix(f".{parts[0]}")
        digests = [hashlib.sha256(column.at(0).tobytes()).hexdigest() for column in columns]
        samples.append((key, dict(zip(parts, digests, strict=True))))
    print(json.dumps(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
