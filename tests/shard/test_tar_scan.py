from __future__ import annotations

import bz2
import gzip
import io
import itertools
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from webdataset import TarWriter

from streamshard.errors import DamagedError
from streamshard.shard import tar
from tests.shard import tars

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
FILES = [("a.bin", b""), ("a.cls", b"12345"), ("b.bin", b"x" * 512), ("b.cls", b"y" * 700)]

_COMPONENTS = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40
)
NAMES = st.sampled_from(["a.bin", "b.bin", "d/" * 60 + "a.bin"]) | st.lists(
    _COMPONENTS, min_size=1, max_size=8
).map("/".join)


def listed_by_tarfile(data: bytes) -> list[tar.Member]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as archive:
        return [
            tar.Member(info.name, info.offset, info.offset_data, info.size)
            for info in archive.getmembers()
            if info.isreg()
        ]


class TestForeignTars:
    """The scan finds what tarfile finds, whoever wrote the tar."""

    @pytest.mark.parametrize("format", FORMATS)
    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(NAMES, st.binary(max_size=1100))
            | st.tuples(NAMES.map(lambda name: name + "/"), st.just(b"")),
            max_size=5,
        ),
        st.sampled_from([0, 7, 1700000000.25]),
    )
    def test_the_scan_equals_tarfiles_listing(
        self, format: str, files: list[tuple[str, bytes]], mtime: float
    ) -> None:
        try:
            data = tars.by_tarfile(files, FORMATS[format], mtime)
        except ValueError:  # USTAR can't hold every name
            assume(False)
        assert tars.members(data) == listed_by_tarfile(data)
        assert [member.name for member in tars.members(data)] == [
            name for name, _ in files if not name.endswith("/")
        ]

    @pytest.mark.parametrize("mtime", [None, 0, 1234.5])
    def test_what_webdatasets_writer_makes_is_read(self, mtime: float | None) -> None:
        out = io.BytesIO()
        keys = ["0001", "dir/ä", "d/" * 80 + "long", "x" * 120]
        with TarWriter(out, mtime=mtime) as writer:
            for key in keys:
                writer.write({"__key__": key, "bin": key.encode(), "cls": 7})
        data = out.getvalue()
        found = {
            member.name: data[member.offset : member.offset + member.size]
            for member in tars.members(data)
        }
        expected = {f"{key}.bin": key.encode() for key in keys}
        assert found == expected | {f"{key}.cls": b"7" for key in keys}
        assert tars.members(data) == listed_by_tarfile(data)

    @pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
    def test_what_gnu_tar_makes_is_read(self, tmp_path: Path, format: str) -> None:
        names = ["a.txt", "sub/b.txt"]
        if format in ("gnu", "posix", "oldgnu"):
            names.append("/".join(["s" * 60] * 4) + "/ä.txt")
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            os.utime(path, ns=(1, 1_500_000_000_123_456_789))
        data = tars.by_gnu_tar(tmp_path, f"--format={format}")
        members = tars.members(data)
        assert members == listed_by_tarfile(data)
        assert {member.name for member in members} == {f"./{name}" for name in names}
        for member in members:
            assert f"./{data[member.offset :][: member.size].decode()}" == member.name

    @pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_a_long_name_is_that_of_the_next_member_only(self, format: int) -> None:
        names = ["d/" * 60 + "a.bin", "b.bin", "d/" * 70 + "e/", "c.bin", "x" * 200, "d.bin"]
        data = tars.by_tarfile([(name, b"") for name in names], format, mtime=0.5)
        found = [member.name for member in tars.members(data)]
        assert found == [name for name in names if not name.endswith("/")]

    def test_folders_are_left_out(self) -> None:
        data = tars.by_tarfile([("d/", b""), ("d/a.bin", b"1"), ("e/", b"")], tarfile.USTAR_FORMAT)
        assert [member.name for member in tars.members(data)] == ["d/a.bin"]

    def test_a_global_pax_header_is_no_member(self) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", pax_headers={"comment": "x" * 600}) as archive:
            archive.addfile(tarfile.TarInfo("a.bin"))
        (member,) = tars.members(out.getvalue())
        assert (member.name, member.size, member.offset) == ("a.bin", 0, 4 * tar.BLOCK)


class TestRefused:
    """What can't be a shard is refused, and the message says why."""

    @pytest.mark.parametrize(
        "kind",
        [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    )
    def test_links_and_devices(self, kind: bytes) -> None:
        with pytest.raises(DamagedError, match=r"x\.tar: member 'b\.bin' at offset 512 is a link"):
            tars.members(tars.one_of_type(kind))

    @pytest.mark.parametrize("format", ["gnu", "posix"])
    def test_sparse_files(self, tmp_path: Path, format: str) -> None:
        with (tmp_path / "hole.bin").open("wb") as file:
            file.truncate(1 << 20)
        data = tars.by_gnu_tar(tmp_path, "--sparse", f"--format={format}")
        assert len(data) < 1 << 16
        with pytest.raises(DamagedError, match="sparse"):
            tars.members(data)

    @pytest.mark.parametrize("size", [10, 100_000])
    def test_gzip(self, size: int) -> None:
        data = gzip.compress(tars.written([("a.bin", os.urandom(size))]))
        with pytest.raises(DamagedError, match=r"x\.tar: gzip-compressed"):
            tars.members(data)

    @pytest.mark.parametrize("data", [b"", b"abc", bytes(100), bytes(512), b"\xff" * 2048])
    def test_what_is_no_tar(self, data: bytes) -> None:
        with pytest.raises(DamagedError, match=r"^x\.tar: "):
            tars.members(data)

    def test_other_compression(self) -> None:
        with pytest.raises(DamagedError, match="damaged header at offset 0"):
            tars.members(bz2.compress(tars.written([("a.bin", os.urandom(10_000))])))

    @pytest.mark.parametrize(
        "size", [b"-0000001000", (2**96 - 512).to_bytes(12), (2**96 - 2**80).to_bytes(12)]
    )
    def test_a_negative_size(self, size: bytes) -> None:
        data = tars.with_type(tar.header("a.bin", 0), tarfile.REGTYPE, size) + tar.END
        scan = tar.scan(io.BytesIO(data), len(data), "x.tar")
        with pytest.raises(DamagedError):
            list(itertools.islice(scan, 10))  # it would go round in circles

    @pytest.mark.parametrize(
        "payload",
        [
            b"12 size=abc\n",
            b"13 size=-512\n",
            b"12 size=1_0\n",
            b"9" * 5000 + b" size=1\n",
            b"7 \xff\xfe=a\n",
            b"12 path=a.x",
            b"5 path=a.x\n",
            b"garbage",
            b"0 path=a.x\n",
            b"99 path=a.x\n",
            b"20 GNU.sparse.map=0\n",
        ],
    )
    def test_a_damaged_pax_header(self, payload: bytes) -> None:
        with pytest.raises(DamagedError, match=r"^x\.tar: "):
            tars.members(tars.with_pax(payload))

    def test_a_member_that_claims_more_than_the_tar_has(self) -> None:
        data = tar.header("a.bin", 8**11 - 1) + bytes(4096)
        with pytest.raises(DamagedError, match=r"truncated: member 'a\.bin' at offset 512 needs"):
            tars.members(data)

    def test_an_extension_that_claims_more_than_the_tar_has(self) -> None:
        data = tars.with_type(tar.header("a.bin", 8**11 - 1), tarfile.XHDTYPE) + bytes(4096)
        with pytest.raises(DamagedError, match="truncated"):
            tars.members(data)


def tars_of_every_kind() -> dict[str, bytes]:
    kinds = {name: tars.by_tarfile(FILES[:2], format, 0.5) for name, format in FORMATS.items()}
    long = [("d/" * 60 + "a.bin", b"123")]
    return {
        "own": tars.written(FILES),
        **kinds,
        "gnu-long": tars.by_tarfile(long, tarfile.GNU_FORMAT),
        "pax-long": tars.by_tarfile(long, tarfile.PAX_FORMAT),
    }


class TestDamage:
    """Bad bytes give the same members or an error."""

    @pytest.mark.parametrize("kind", tars_of_every_kind())
    def test_every_cut_is_refused_up_to_the_second_zero_block(self, kind: str) -> None:
        data = tars_of_every_kind()[kind]
        last = tars.members(data)[-1]
        end = last.offset + last.size + tar.padding(last.size) + len(tar.END)
        for cut in {*range(0, end, tar.BLOCK), *range(0, end, 37), end - 1}:
            with pytest.raises(DamagedError, match=r"truncated|lone zero block"):
                tars.members(data[:cut])
        for cut in {end, len(data)}:
            assert tars.members(data[:cut]) == tars.members(data)

    @pytest.mark.slow
    def test_every_cut_of_every_byte_is_refused(self) -> None:
        data = tars.written(FILES)
        for cut in range(len(data)):
            with pytest.raises(DamagedError):
                tars.members(data[:cut])

    @pytest.mark.parametrize("kind", tars_of_every_kind())
    def test_no_flipped_bit_of_a_header_block_changes_a_member(self, kind: str) -> None:
        data = tars_of_every_kind()[kind]
        whole = tars.members(data)
        headers = header_blocks(data)
        end = whole[-1].offset + whole[-1].size + tar.padding(whole[-1].size)
        unseen = set()
        for byte in itertools.chain.from_iterable(
            range(start, start + tar.BLOCK) for start in [*headers[:3], end, end + tar.BLOCK]
        ):
            for bit in range(8):
                flipped = bytearray(data)
                flipped[byte] ^= 1 << bit
                try:
                    assert tars.members(bytes(flipped)) == whole, f"byte {byte}, bit {bit}"
                except DamagedError:
                    continue
                unseen.add(byte % tar.BLOCK)
        assert unseen <= {*range(148, 156)}  # the checksum's own field, read as the same number

    @pytest.mark.parametrize("kind", ["gnu-long", "pax", "pax-long"])
    def test_a_flipped_bit_in_an_extension_is_refused_or_read(self, kind: str) -> None:
        """Its payload has no checksum, so only the index can tell; but nothing else is raised."""
        data = tars_of_every_kind()[kind]
        for byte in range(tar.BLOCK, 2 * tar.BLOCK):
            for bit in range(8):
                flipped = bytearray(data)
                flipped[byte] ^= 1 << bit
                try:
                    found: Any = tars.members(bytes(flipped))
                except DamagedError:
                    continue
                assert len(found) == len(tars.members(data)), f"byte {byte}, bit {bit}"

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_zeroed_blocks_are_refused_or_lie_in_data(self, draw: st.DataObject) -> None:
        data = tars.written(FILES)
        start = draw.draw(st.integers(0, len(data) // tar.BLOCK - 3)) * tar.BLOCK
        zeroed = data[:start] + bytes(2 * tar.BLOCK) + data[start + 2 * tar.BLOCK :]
        spared = not {start, start + tar.BLOCK} & {*header_blocks(data)}
        try:
            assert (tars.members(zeroed) == tars.members(data)) is spared
        except DamagedError:
            assert not spared


def header_blocks(data: bytes) -> list[int]:
    """Where the header blocks begin, extensions included."""
    starts = []
    for member in tars.members(data):
        starts += [*{member.header, member.offset - tar.BLOCK}]
    return sorted(starts)
