from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamshard.errors import DamagedError, DatasetError, StreamshardError
from streamshard.shard import columns
from streamshard.shard.manifest import HEAD, TABLE, Manifest, ShardTable, _head_hash, read_manifest
from tests.shard.datasets import Files, meaning, shard, small


class TestDamage:
    """Head and table are refused unless they are whole and fit together."""

    FILES = small().to_files()

    @settings(max_examples=1000, deadline=None)
    @given(st.sampled_from([HEAD, TABLE]), st.data())
    def test_no_changed_byte_changes_the_meaning(self, name: str, draw: st.DataObject) -> None:
        changed = bytearray(self.FILES[name])
        at = draw.draw(st.integers(0, len(changed) - 1))
        changed[at] ^= draw.draw(st.integers(1, 255))
        self.refused_or_the_same(name, bytes(changed))

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from([HEAD, TABLE]), st.data())
    def test_no_cut_or_insertion_changes_the_meaning(self, name: str, draw: st.DataObject) -> None:
        whole = self.FILES[name]
        start, end = sorted(draw.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
        inserted = draw.draw(st.binary(max_size=8))
        assume(whole[start:end] != inserted)
        self.refused_or_the_same(name, whole[:start] + inserted + whole[end:])

    def refused_or_the_same(self, name: str, data: bytes) -> None:
        try:
            found = read_manifest(Files({**self.FILES, name: data}), "x")
        except StreamshardError:
            return
        assert meaning(found) == meaning(small())

    @pytest.mark.parametrize("name", list(json.loads(FILES[HEAD])))
    def test_a_head_without_one_of_its_entries_is_refused(self, name: str) -> None:
        head = json.loads(self.FILES[HEAD])
        del head[name]
        if name != "bytes":  # told for people; nothing reads it
            with pytest.raises(StreamshardError, match=r"^x"):
                self.read(head)

    @pytest.mark.parametrize("head", [None, 3, [], "streamshard", {}, {"format": "other"}])
    def test_what_is_no_head_is_refused(self, head: Any) -> None:
        with pytest.raises(DamagedError, match=rf"^x/{HEAD}: not a "):
            self.read(head)

    @pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
    def test_what_is_no_json_is_refused(self, data: bytes) -> None:
        with pytest.raises(DamagedError, match=rf"^x/{HEAD}: not a manifest"):
            read_manifest(Files({**self.FILES, HEAD: data}), "x")

    @pytest.mark.parametrize("version", [0, 2, "1", None])
    def test_another_format_version_is_refused_by_number(self, version: Any) -> None:
        with pytest.raises(DatasetError, match="reads version 1"):
            self.read({**json.loads(self.FILES[HEAD]), "version": version})

    @pytest.mark.parametrize("name", ["samples", "shards", "fingerprint"])
    def test_a_head_that_tells_other_totals_than_its_table_is_refused(self, name: str) -> None:
        head = {**json.loads(self.FILES[HEAD]), name: 3}
        with pytest.raises(DamagedError, match="changed after it was written"):
            self.read(head)
        with pytest.raises(DamagedError, match="the manifest says"):
            self.read({**head, "head_sha256": _head_hash(head)})

    def test_the_table_of_another_dataset_is_refused(self) -> None:
        other = Manifest({}, ShardTable.of([shard(5)])).to_files()[TABLE]
        with pytest.raises(DamagedError, match=rf"^x/{TABLE}: not the table"):
            read_manifest(Files({**self.FILES, TABLE: other}), "x")

    @pytest.mark.parametrize(
        "name", ["name.ends", "samples", "nbytes", "sha256", "index_sha256", "name.data"]
    )
    def test_a_table_without_a_column_or_a_row_of_it_is_refused(self, name: str) -> None:
        arrays = columns.from_buffer(np.frombuffer(self.FILES[TABLE], np.uint8), "x")
        lacking = {other: array for other, array in arrays.items() if other != name}
        for changed in (lacking, {**lacking, name: arrays[name][:-1]}):
            table = columns.to_bytes(changed)
            head = json.loads(self.FILES[HEAD])
            head["table_sha256"] = hashlib.sha256(table).hexdigest()
            files = Files({TABLE: table, HEAD: json.dumps(head).encode()})
            with pytest.raises(DamagedError):
                list(read_manifest(files, "x").table)

    def read(self, head: Any) -> Manifest:
        return read_manifest(Files({**self.FILES, HEAD: json.dumps(head).encode()}), "x")
