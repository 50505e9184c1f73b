"""The public surface is a list, and it is this one."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

import streamshard as ss
from streamshard import errors

PUBLIC = [
    "Batch",
    "Budget",
    "CenterCrop",
    "Decode",
    "GpuDecode",
    "Graphs",
    "Mixture",
    "Normalize",
    "PackOptions",
    "RandomResizedCrop",
    "Resize",
    "ShardDataset",
    "ShardWriter",
    "StreamLoader",
    "World",
    "errors",
    "index_tars",
    "open",
    "pack_graphs",
    "pack_images",
    "pack_mds",
    "pack_parquet",
    "pack_table",
    "pack_tars",
    "webdataset_source",
]


def test_the_public_names_are_these_sorted_and_documented() -> None:
    assert ss.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(ss, name).__doc__, name
    assert set(PUBLIC) <= set(dir(ss))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ss.nothing  # noqa: B018


def all_errors() -> list[type[errors.StreamshardError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_every_error_is_in_the_drawn_tree_and_survives_pickling() -> None:
    assert errors.__doc__
    drawn = re.findall(r"\w+Error", errors.__doc__)
    for kind in all_errors():
        assert issubclass(kind, errors.StreamshardError)
        assert kind.__name__ in drawn
        again = pickle.loads(pickle.dumps(kind("what, rule, value, remedy")))
        assert (type(again), str(again)) == (kind, "what, rule, value, remedy")
    assert issubclass(errors.UsageError, ValueError)


def test_the_changelog_has_this_version() -> None:
    text = (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[?({re.escape(ss.__version__)}|Unreleased)", text, re.MULTILINE)
