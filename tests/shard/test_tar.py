from __future__ import annotations

import inspect
import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from streamshard.errors import UsageError
from streamshard.shard import tar
from tests.shard import tars

SAFE_NAMES = st.from_regex(r"[A-Za-z0-9_/%+=,@~-]{1,70}\.[a-z0-9_.]{1,29}", fullmatch=True)

# Name "000001.jpg", 17 bytes; the first 265 bytes of the block, which zeros fill up.
GOLDEN = (
    "3030303030312e6a7067" + "00" * 90 + "303030303634340030303030303030003030303030303000"
    "303030303030303030323100303030303030303030303000303037313630002030"
    + "00" * 100
    + "7573746172003030"
)


def test_header_bytes_never_change() -> None:
    assert tar.header("000001.jpg", 17).hex() == GOLDEN + "00" * 247


@given(SAFE_NAMES, st.integers(0, 8**11 - 1))
def test_tarfile_reads_the_header_as_it_was_meant(name: str, size: int) -> None:
    info = tarfile.TarInfo.frombuf(tar.header(name, size), "ascii", "strict")
    assert (info.name, info.size, info.type) == (name, size, tarfile.REGTYPE)
    assert (info.mode, info.mtime, info.uid, info.gid) == (0o644, 0, 0, 0)
    assert (info.uname, info.gname, info.linkname) == ("", "", "")


@given(st.dictionaries(SAFE_NAMES, st.binary(max_size=1100), max_size=5))
def test_a_written_tar_is_read_alike_by_tarfile_and_the_scan(files: dict[str, bytes]) -> None:
    data = tars.written(files.items())
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        infos = archive.getmembers()
        assert [archive.extractfile(info).read() for info in infos] == [*files.values()]  # type: ignore[union-attr]
    assert [info.name for info in infos] == [*files]
    assert tars.members(data) == [
        tar.Member(info.name, info.offset, info.offset_data, info.size) for info in infos
    ]


def test_gnu_tar_lists_and_extracts_what_was_written(tmp_path: Path) -> None:
    files = {"a/000.jpg": b"", "a/001.seg.png": b"x" * 512, "~%2E=,@+-_.cls": b"y" * 700}
    path = tmp_path / "own.tar"
    path.write_bytes(tars.written(files.items()))

    def gnu_tar(*arguments: str) -> bytes:
        command = ["tar", *arguments]
        env = {"TZ": "UTC", "LC_ALL": "C", "PATH": "/usr/bin:/bin"}
        run = subprocess.run(command, check=True, capture_output=True, env=env)
        assert run.stderr == b""
        return run.stdout

    assert gnu_tar("tf", str(path)).decode().split("\n") == [*files, ""]
    for line, (name, data) in zip(
        gnu_tar("tvf", str(path), "--numeric-owner").decode().splitlines(),
        files.items(),
        strict=True,
    ):
        assert line.split() == ["-rw-r--r--", "0/0", str(len(data)), "1970-01-01", "00:00", name]
        assert gnu_tar("xOf", str(path), name) == data


@pytest.mark.parametrize(
    "name",
    [
        "",
        "noext",
        ".jpg",
        "a.",
        "a b.jpg",
        "a.JPG",
        "ä.jpg",
        "a:b.jpg",
        "a\\b.jpg",
        "a\0.jpg",
        "../a.jpg",
        "a/../b.jpg",
        "./a.jpg",
        "a.jpg/b",
        "a.jpg\n",
        "a\n.jpg",
        "a.jpg ",
        "x" * 97 + ".jpg",
    ],
)
def test_a_name_outside_the_safe_subset_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="member name"):
        tar.header(name, 1)


def test_a_name_of_100_bytes_is_kept_and_one_of_101_refused() -> None:
    name = "x" * 96 + ".jpg"
    data = tars.written([(name, b"1")])
    assert [member.name for member in tars.members(data)] == [name]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [name]
    with pytest.raises(UsageError, match="at most 100 bytes"):
        tar.header("x" + name, 1)


def test_a_size_that_ustar_can_not_hold_is_refused() -> None:
    assert tarfile.TarInfo.frombuf(tar.header("a.b", 8**11 - 1), "ascii", "").size == 8**11 - 1
    for size in (-1, 8**11):
        with pytest.raises(UsageError, match="8 GiB"):
            tar.header("a.b", size)


@given(st.integers(0, 10**7))
def test_padding_fills_the_last_block_and_no_more(size: int) -> None:
    assert 0 <= tar.padding(size) < tar.BLOCK
    assert (size + tar.padding(size)) % tar.BLOCK == 0


class TestSplitName:
    """Key and part are what webdataset makes of the same name."""

    PIECES = st.sampled_from([*"aB9_ ä\n", ".", "..", "/", "__", "__x__", "__meta__", "JPG", "./"])
    NAMES = st.lists(PIECES, min_size=1, max_size=9).map("".join)

    @staticmethod
    def webdatasets(name: str) -> tuple[str, str] | None:
        rule = inspect.signature(tar_file_iterator).parameters["skip_meta"].default
        if re.match(rule, name) or ("/" not in name and name[:2] == name[-2:] == "__"):
            return None
        key, suffix = base_plus_ext(name)
        return None if key is None else (key, suffix.lower())

    @settings(max_examples=2000)
    @given(NAMES)
    def test_is_webdatasets_rule(self, name: str) -> None:
        assert tar.split_name(name) == self.webdatasets(name)

    @pytest.mark.parametrize(
        ("name", "split"),
        [
            ("dir.x/a.seg.PNG", ("dir.x/a", "seg.png")),
            ("./a.jpg", ("./a", "jpg")),
            ("dir/a", None),
            (".hidden", None),
            ("a/.hidden", ("a/", "hidden")),
            ("__meta__", None),
            ("__meta__/x.json", None),
            ("__meta__.json", ("__meta__", "json")),
            ("__x/a.jpg", ("__x/a", "jpg")),
            ("a/__x__.jpg", ("a/__x__", "jpg")),
        ],
    )
    def test_knows_the_odd_cases(self, name: str, split: tuple[str, str] | None) -> None:
        assert tar.split_name(name) == split == self.webdatasets(name)

    @settings(max_examples=50, deadline=None)
    @given(st.sets(NAMES, max_size=6))
    def test_gives_the_samples_that_webdataset_reads_from_a_real_tar(self, names: set[str]) -> None:
        names = {name for name in names if not name.endswith("/") and name.strip("\n")}
        splits = [split for name in sorted(names) if (split := tar.split_name(name))]
        assume(len({*splits}) == len(splits))  # a part twice is an error in both
        data = tars.by_tarfile(
            [(name, name.encode()) for name in sorted(names)], tarfile.PAX_FORMAT
        )
        stream = ({**file, "__url__": "x"} for file in tar_file_iterator(io.BytesIO(data)))
        found = [
            (sample["__key__"], part)
            for sample in group_by_keys(stream)
            for part in sample
            if part not in ("__key__", "__url__")
        ]
        assert sorted(found) == sorted(splits)


class TestCheckHeader:
    """The header in front of the data, against what the index says."""

    @given(SAFE_NAMES, st.integers(0, 8**11 - 1))
    def test_agrees_with_what_was_written(self, name: str, size: int) -> None:
        assert tar.check_header(tar.header(name, size), name, size) is None

    @pytest.mark.parametrize(
        "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    )
    @pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "d/ä.jpg", "d/" * 60 + "a.jpg", "a b.x"])
    def test_agrees_with_what_others_wrote(self, name: str, format: int) -> None:
        data = tars.by_tarfile([(name, b"12345")], format, mtime=0.5)
        offset = tars.members(data)[0].offset
        key, _, suffix = name.rpartition(".")
        block = data[offset - tar.BLOCK : offset]
        assert tar.check_header(block, f"{key}.{suffix.lower()}", 5) is None

    def test_names_the_other_size(self) -> None:
        found = tar.check_header(tar.header("a.jpg", 5), "a.jpg", 6)
        assert found == "the tar says 5 bytes, the index 6"

    def test_names_the_other_member(self) -> None:
        found = tar.check_header(tar.header("a.jpg", 5), "b.jpg", 5)
        assert found == "the tar has 'a.jpg' there"

    def test_a_long_name_still_has_its_size_compared(self) -> None:
        name = "d/" * 60 + "a.jpg"
        data = tars.by_tarfile([(name, b"12345")], tarfile.PAX_FORMAT)
        offset = tars.members(data)[0].offset
        found = tar.check_header(data[offset - tar.BLOCK : offset], name, 4)
        assert found == "the tar says 5 bytes, the index 4"

    @pytest.mark.parametrize("block", [bytes(512), b"\xff" * 512, b"a.jpg" + bytes(507), b""])
    def test_says_that_there_is_no_header(self, block: bytes) -> None:
        found = tar.check_header(block, "a.jpg", 5)
        assert found is not None
        assert found.startswith("no tar header there")
