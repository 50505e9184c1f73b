from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
from pathlib import Path

import fsspec
import pytest

from streamshard.errors import NotFoundError, PackError, StoreError
from streamshard.pack.rows import RowFile

LINES = [b"one\n", b"\n", b"three, longer\r\n", b"four"]


def noted(url: str) -> RowFile:
    """The file with all its lines noted as rows."""
    rows = RowFile(url)
    offset = 0
    for number, line in enumerate(rows.lines(), 1):
        rows.add(number, offset, len(line))
        offset += len(line)
    return rows


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"".join(LINES))
    rows = noted(str(tmp_path / "a.txt"))
    assert len(rows) == 4
    assert [rows[number].read() for number in (3, 1, 0, 2)] == [LINES[n] for n in (3, 1, 0, 2)]
    assert str(rows[2]) == f"{tmp_path}/a.txt:3"
    assert pickle.loads(pickle.dumps(rows[2])).read() == LINES[2]


@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
def test_a_compressed_file_is_unpacked_into_a_copy_that_goes_away(
    tmp_path: Path, scratch: Path, suffix: str, compress: type
) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(compress(b"".join(LINES)))
    rows = noted(str(path))
    assert rows[2].read() == LINES[2]
    assert str(rows[2]) == f"{path}:3"
    assert len(os.listdir(scratch)) == 1
    del rows
    assert os.listdir(scratch) == []


def test_a_remote_file_is_copied_and_its_secrets_are_not_named(scratch: Path) -> None:
    with fsspec.open("memory://rows/a.txt.gz", "wb") as file:
        file.write(gzip.compress(b"".join(LINES)))
    rows = noted("memory://rows/a.txt.gz")
    assert [rows[number].read() for number in range(4)] == LINES
    with pytest.raises(StoreError, match=r"memory://host/rows/none\.txt") as raised:
        RowFile("memory://me:secret@host/rows/none.txt?token=secret")
    assert "secret" not in str(raised.value)
    del rows
    assert os.listdir(scratch) == []


def test_a_cut_or_wrong_compression_is_an_error_and_leaves_no_copy(
    tmp_path: Path, scratch: Path
) -> None:
    whole = gzip.compress(os.urandom(100_000))
    (tmp_path / "cut.gz").write_bytes(whole[:50_000])
    (tmp_path / "wrong.gz").write_bytes(b"no gzip at all")
    (tmp_path / "damaged.gz").write_bytes(whole[:-5] + b"?" + whole[-4:])
    for name in ("cut", "wrong", "damaged"):
        with pytest.raises(PackError, match=rf"{name}\.gz: "):
            RowFile(f"{tmp_path}/{name}.gz")
    assert os.listdir(scratch) == []


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.txt: not found"):
        noted(f"{tmp_path}/nowhere.txt")
    with pytest.raises(NotFoundError, match=r"nowhere\.txt\.gz: not found"):
        noted(f"{tmp_path}/nowhere.txt.gz")
    with pytest.raises(StoreError, match="is a folder, not a file"):
        noted(str(tmp_path))


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"".join(LINES))
    rows = noted(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(LINES[0])
    with pytest.raises(ValueError, match=r"changed .*: 24 bytes when it was listed, 4 now"):
        rows[2].read()
