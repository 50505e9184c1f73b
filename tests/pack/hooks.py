"""Functions for `map=`."""

from __future__ import annotations

import os
from typing import Any

Sample = dict[str, Any]


def keep(sample: Sample) -> Sample:
    return sample


def with_size(sample: Sample) -> Sample:
    return {**sample, "json": {"bytes": len(sample["png"])}}


def without_key(sample: Sample) -> Sample:
    return {"cls": sample["cls"]}


def odd_only(sample: Sample) -> Sample | None:
    return sample if int(sample["__key__"].rpartition("/")[2]) % 2 else None


def twice(sample: Sample) -> list[Sample]:
    return [{**sample, "cls": 10 + time} for time in range(2)]


def by_own_keys(sample: Sample) -> list[Sample]:
    key = sample["__key__"]
    return [{**sample, "__key__": f"{key}/left"}, {**sample, "__key__": f"{key}/right"}]


def pixels(sample: Sample) -> Sample:
    import numpy

    return {"npy": numpy.full((2, 2), sample["cls"])}


def fail_on_three(sample: Sample) -> Sample:
    if sample["__key__"].endswith("3"):
        raise RuntimeError("three\nof them")
    return sample


def a_number(sample: Sample) -> int:
    return 7


def nothing(sample: Sample) -> list[Sample]:
    return []


def where(sample: Sample) -> Sample:
    return {"txt": str(os.getpid())}


def larger(sample: Sample) -> Sample:
    sample["graph"].x = sample["graph"].x + 1
    return sample


def three(sample: Sample) -> list[Sample]:
    return [{**sample, "cls": 10 + time} for time in range(3)]


def three_or_none(sample: Sample) -> list[Sample]:
    return [] if sample["cls"] == 1 else three(sample)


def three_one_bad(sample: Sample) -> list[Sample]:
    samples = three(sample)
    return [samples[0], {**samples[1], "png": b"no image"}, samples[2]]
