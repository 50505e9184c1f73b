from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamshard.errors import DamagedError, DatasetError
from streamshard.shard import columns
from streamshard.shard.manifest import (
    HEAD,
    TABLE,
    Manifest,
    Part,
    Shard,
    ShardTable,
    index_name,
    read_index,
    read_manifest,
)
from tests.shard.datasets import Files, meaning, shard, small

HASHES = st.binary(min_size=32, max_size=32)
SHARDS = st.builds(
    Shard,
    st.text(
        st.characters(exclude_characters="/\\:\0\n", exclude_categories=["Cs"]), max_size=12
    ).map(lambda name: "s" + name + ".tar"),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    HASHES,
    HASHES,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
PARTS = st.dictionaries(
    st.text(max_size=6),
    st.builds(
        Part,
        st.text(max_size=6),
        st.text(max_size=6),
        st.dictionaries(st.text(max_size=5), JSON, max_size=3),
        st.booleans(),
    ),
    max_size=3,
)
MANIFESTS = st.builds(
    Manifest,
    PARTS,
    st.lists(SHARDS, max_size=4).map(ShardTable.of),
    st.none() | st.lists(st.text(max_size=6), max_size=3),
)


class TestRoundTrip:
    """What is written is read."""

    @settings(deadline=None)
    @given(MANIFESTS)
    def test_a_manifest_is_read_as_it_was_written(self, manifest: Manifest) -> None:
        found = read_manifest(Files(manifest.to_files()), "x")
        assert meaning(found) == meaning(manifest)
        assert len(found) == len(manifest) == sum(row.samples for row in manifest.table)

    @given(st.lists(SHARDS, max_size=5))
    def test_a_table_has_the_rows_that_were_given(self, shards: list[Shard]) -> None:
        table = ShardTable.of(shards)
        assert list(table) == shards
        assert len(table) == len(shards)
        found = columns.from_buffer(np.frombuffer(table.to_bytes(), np.uint8), "x")
        assert list(ShardTable(found)) == shards

    def test_the_head_is_written_last(self) -> None:
        assert list(small().to_files()) == [TABLE, HEAD]

    def test_the_same_dataset_gives_the_same_bytes(self) -> None:
        assert small().to_files() == small().to_files()

    def test_the_head_tells_totals_and_nothing_of_the_place(self) -> None:
        head = json.loads(small().to_files()[HEAD])
        assert (head["samples"], head["shards"], head["bytes"]) == (17, 2, 2000)
        assert (head["format"], head["version"]) == ("streamshard", 1)
        assert not {"time", "host", "url", "path", "user"} & {*head}


class TestFingerprint:
    """It tells the data, and only the data."""

    ROWS = (shard(0), shard(1, 7), shard(2))

    def of(self, rows: list[Shard]) -> str:
        return ShardTable.of(rows).fingerprint()

    def test_it_never_changes(self) -> None:
        assert self.of([*self.ROWS]) == "4abdc058a6f9140dcd8ef6817c4a1d28"

    @pytest.mark.parametrize(
        "change",
        [
            lambda row: row._replace(samples=row.samples + 1),
            lambda row: row._replace(sha256=bytes(32)),
        ],
        ids=["count", "hash"],
    )
    @pytest.mark.parametrize("number", range(3))
    def test_counts_and_hashes_change_it(
        self, change: Callable[[Shard], Shard], number: int
    ) -> None:
        rows = [*self.ROWS]
        rows[number] = change(rows[number])
        assert self.of(rows) != self.of([*self.ROWS])

    def test_order_and_number_change_it(self) -> None:
        a, b, c = self.ROWS
        assert len({self.of(rows) for rows in ([a, b, c], [b, a, c], [a, c, b], [a, b], [a])}) == 5

    def test_names_do_not_change_it(self) -> None:
        renamed = [row._replace(name=f"other-{row.name}") for row in self.ROWS]
        assert self.of(renamed) == self.of([*self.ROWS])


class TestSelect:
    """A dataset of some of the shards."""

    def test_it_has_these_shards_in_this_order(self) -> None:
        whole = small()
        some = whole.select(["shard-000001.tar"], "x")
        assert list(some.table) == [whole.table[1]]
        assert (len(some), some.parts, some.classes) == (7, whole.parts, whole.classes)
        swapped = whole.select(["shard-000001.tar", "shard-000000.tar"], "x")
        assert list(swapped.table) == [whole.table[1], whole.table[0]]

    def test_its_fingerprint_is_its_own(self) -> None:
        whole = small()
        names = [row.name for row in whole.table]
        assert whole.select(names, "x").fingerprint == whole.fingerprint
        assert whole.select(names[:1], "x").fingerprint != whole.fingerprint
        assert whole.select(names[::-1], "x").fingerprint != whole.fingerprint

    def test_a_shard_that_is_not_there_is_refused_by_name(self) -> None:
        with pytest.raises(DatasetError, match=r"^x: shard-9\.tar is not in the dataset"):
            small().select(["shard-000000.tar", "shard-9.tar"], "x")


class TestNames:
    """A shard is a plain file beside its manifest."""

    @pytest.mark.parametrize(
        "name",
        [
            "../a.tar",
            "a/b.tar",
            "/etc/a.tar",
            "..tar",
            ".hidden.tar",
            ".streamshard/a.tar",
            "s3://bucket/a.tar",
            "file:a.tar",
            "a::b.tar",
            "a\\b.tar",
            "a\0.tar",
            "a.tar\n",
            "a.tar.gz",
            "a",
            ".tar",
            "",
        ],
    )
    def test_what_is_no_plain_file_name_is_refused(self, name: str) -> None:
        files = Files(Manifest({}, ShardTable.of([shard(0, name=name)])).to_files())
        with pytest.raises(DamagedError, match="is not a plain file name"):
            list(read_manifest(files, "x").table)

    def test_an_index_has_its_shards_name(self) -> None:
        assert index_name("a.b.tar") == ".streamshard/a.b.index.safetensors"


class TestIndexInStep:
    """An index is read only with the shard table that it was written with."""

    DATA = columns.to_bytes({"key.data": np.zeros(0, np.uint8), "key.ends": np.zeros(0, np.int64)})

    def row(self) -> Shard:
        return shard(0)._replace(index_sha256=hashlib.sha256(self.DATA).digest())

    def test_the_right_one_is_read(self) -> None:
        files = Files({index_name("shard-000000.tar"): self.DATA})
        assert read_index(files, self.row(), "x").keys() == {"key.data", "key.ends"}

    def test_any_other_is_refused(self) -> None:
        name = index_name("shard-000000.tar")
        for data in (self.DATA + b" ", self.DATA[:-1], b"", bytes(len(self.DATA))):
            with pytest.raises(DamagedError, match=rf"^x/{name}: out of step with the manifest"):
                read_index(Files({name: data}), self.row(), "x")


def test_a_million_shards_open_at_once() -> None:
    """The aim is 0.2 s; the bound leaves room for a slow machine."""
    count, width = 1_000_000, len("shard-0000000.tar")
    digits = np.char.zfill(np.arange(count).astype("S7"), 7)
    names = np.char.add(np.char.add(b"shard-", digits), b".tar")
    table = ShardTable(
        {
            "name.data": names.view(np.uint8),
            "name.ends": np.arange(1, count + 1) * width,
            "samples": np.full(count, 1000),
            "nbytes": np.full(count, 10**8),
            "sha256": np.zeros((count, 32), np.uint8),
            "index_sha256": np.zeros((count, 32), np.uint8),
        }
    )
    files = Files(Manifest({}, table).to_files())
    start = time.process_time()
    manifest = read_manifest(files, "x")
    took = time.process_time() - start
    assert (len(manifest), len(manifest.table)) == (10**9, count)
    assert manifest.table[123_456].name == "shard-0123456.tar"
    assert took < 1.5
