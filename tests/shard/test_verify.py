from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from streamshard.pack.writer import ShardWriter
from streamshard.shard import columns, tar
from streamshard.shard.index import Index
from streamshard.shard.manifest import FOLDER, Manifest, index_name, read_index, read_manifest
from streamshard.shard.verify import find_damage
from streamshard.store.local import LocalStore

SAMPLES = 12


def part(number: int) -> bytes:
    return bytes([number]) * (300 + 37 * number)


@dataclass
class Packed:
    """A small dataset on disk, of three shards."""

    folder: Path

    @property
    def store(self) -> LocalStore:
        return LocalStore(str(self.folder))

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.store, str(self.folder))

    def findings(self) -> list[str]:
        return list(find_damage(self.store, self.store, self.manifest))

    def index(self, shard: int) -> Index:
        row = self.manifest.table[shard]
        return Index(read_index(self.store, row, "x"), row.name)

    def tar(self, shard: int) -> Path:
        return self.folder / self.manifest.table[shard].name

    def flip(self, shard: int, offset: int) -> None:
        data = bytearray(self.tar(shard).read_bytes())
        data[offset] ^= 1
        self.tar(shard).write_bytes(data)


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    with ShardWriter(str(tmp_path / "set"), shard_size="7KB") as writer:
        for number in range(SAMPLES):
            writer.write({"__key__": f"{number:04d}", "bin": part(number), "cls": number})
    assert len(writer.manifest.table) > 2
    return Packed(tmp_path / "set")


def test_a_whole_dataset_has_no_findings(packed: Packed) -> None:
    assert packed.findings() == []


def test_progress_counts_every_sample_and_byte(packed: Packed) -> None:
    calls: list[tuple[int, int | None, int]] = []
    list(find_damage(packed.store, packed.store, packed.manifest, lambda *call: calls.append(call)))
    table = packed.manifest.table
    assert calls == [
        (table.samples[: n + 1].sum(), SAMPLES, table.nbytes[: n + 1].sum())
        for n in range(len(table))
    ]


def test_unknown_files_are_tolerated(packed: Packed) -> None:
    (packed.folder / "README").write_text("hello")
    (packed.folder / FOLDER / "notes.json").write_text("{}")
    assert packed.findings() == []


@pytest.mark.parametrize("shard", [0, 1])
def test_a_flipped_byte_of_data_is_told_by_shard_key_part_and_offset(
    packed: Packed, shard: int
) -> None:
    index = packed.index(shard)
    row = 1
    for name in ("bin", "cls"):
        offset, size = (int(column[row]) for column in index.extent(name)[:2])
        packed.flip(shard, offset + size - 1)
        assert packed.findings() == [
            f"{packed.tar(shard)}: key {index.keys[row]}, part {name} at offset {offset}: "
            "crc32 differs; the data were changed after packing"
        ]
        packed.flip(shard, offset + size - 1)
    assert packed.findings() == []


def test_a_byte_flipped_anywhere_in_a_tar_is_found_in_that_shard(packed: Packed) -> None:
    size = packed.tar(1).stat().st_size
    for offset in {*range(0, size, 61), *range(100, 264), size - 1}:
        packed.flip(1, offset)
        findings = packed.findings()
        packed.flip(1, offset)
        assert findings, f"byte {offset}"
        assert all(finding.startswith(f"{packed.tar(1)}: ") for finding in findings)


def test_a_changed_name_in_a_header_is_told_by_both_names(packed: Packed) -> None:
    index = packed.index(0)
    offset = int(index.extent("bin").offset[1])
    data = bytearray(packed.tar(0).read_bytes())
    data[offset - tar.BLOCK : offset] = tar.header("other.bin", len(part(1)))
    packed.tar(0).write_bytes(data)
    assert packed.findings() == [
        f"{packed.tar(0)}: key 0001, part bin at offset {offset}: "
        "index out of step with its tar: the tar has 'other.bin' there"
    ]


def test_a_flipped_byte_of_a_header_is_told_by_its_place(packed: Packed) -> None:
    offset = int(packed.index(0).extent("bin").offset[1])
    packed.flip(0, offset - tar.BLOCK)  # of the name
    first, *_ = packed.findings()
    assert first.startswith(f"{packed.tar(0)}: key 0001, part bin at offset {offset}: index out")
    packed.flip(0, offset - tar.BLOCK)
    packed.flip(0, offset - tar.BLOCK + 100)  # of the mode, which the index does not keep
    assert packed.findings() == [
        f"{packed.tar(0)}: sha256 differs from the manifest's, outside the parts' data",
        f"{packed.tar(0)}: damaged header at offset {offset - tar.BLOCK}: bad checksum",
    ]


def test_a_flipped_byte_of_padding_is_told_as_outside_the_data(packed: Packed) -> None:
    offset, size = (int(column[0]) for column in packed.index(0).extent("bin")[:2])
    assert tar.padding(size)
    packed.flip(0, offset + size)
    assert packed.findings() == [
        f"{packed.tar(0)}: sha256 differs from the manifest's, outside the parts' data"
    ]


@pytest.mark.parametrize("left", [0, 100, 512, 5000, -1024, -1])
def test_a_cut_shard_is_told_with_its_sizes(packed: Packed, left: int) -> None:
    whole = packed.tar(1).read_bytes()
    packed.tar(1).write_bytes(whole[:left])
    findings = packed.findings()
    size = len(whole[:left])
    assert findings[0] == f"{packed.tar(1)}: {size} bytes, the manifest says {len(whole)}"
    assert all(finding.startswith(str(packed.tar(1))) for finding in findings)
    index = packed.index(1)
    for name in ("bin", "cls"):
        extent = index.extent(name)
        for row, offset in enumerate(extent.offset.tolist()):
            place = f"key {index.keys[row]}, part {name} at offset {offset}: truncated"
            lost = offset + int(extent.size[row]) > size
            assert any(place in finding for finding in findings) is lost


def test_bytes_after_the_end_are_found(packed: Packed) -> None:
    with packed.tar(0).open("ab") as file:
        file.write(b"more")
    assert packed.findings()[0].startswith(f"{packed.tar(0)}: ")


def test_a_missing_shard_is_told_and_the_others_are_read(packed: Packed) -> None:
    packed.tar(0).unlink()
    packed.flip(1, int(packed.index(1).extent("bin").offset[0]))
    first, second = packed.findings()
    assert first == f"{packed.folder}/shard-000000.tar: not found"
    assert "shard-000001.tar: key" in second


def test_swapped_shards_are_found_in_both(packed: Packed) -> None:
    one, two = packed.tar(0), packed.tar(1)
    shutil.move(one, packed.folder / "x")
    shutil.move(two, one)
    shutil.move(packed.folder / "x", two)
    findings = packed.findings()
    for path in (one, two):
        assert any(finding.startswith(f"{path}: key") for finding in findings)


@pytest.mark.parametrize("damage", ["swapped", "missing", "cut"])
def test_an_index_that_is_not_the_shards_own_is_found(packed: Packed, damage: str) -> None:
    path = packed.folder / index_name(packed.tar(0).name)
    if damage == "swapped":
        shutil.copy(packed.folder / index_name(packed.tar(1).name), path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    (finding,) = packed.findings()
    assert finding.startswith(f"{path}: ")
    assert ("not found" if damage == "missing" else "out of step") in finding


def test_an_index_that_points_in_front_of_the_tar_is_a_finding(packed: Packed) -> None:
    """Its hash fits, so whoever wrote the dataset wrote it so."""
    manifest = packed.manifest
    path = packed.folder / index_name(packed.tar(0).name)
    arrays = {
        name: array.copy()
        for name, array in columns.from_buffer(np.fromfile(path, np.uint8), "x").items()
    }
    arrays["bin.offset"][0] = np.int64(0)
    path.write_bytes(columns.to_bytes(arrays))
    rows = [*manifest.table]
    digest = hashlib.sha256(path.read_bytes()).digest()
    rows[0] = rows[0]._replace(index_sha256=digest)
    changed = Manifest(manifest.parts, type(manifest.table).of(rows))
    findings = list(find_damage(packed.store, packed.store, changed))
    assert findings
    assert all(finding.startswith(str(packed.tar(0))) for finding in findings)
