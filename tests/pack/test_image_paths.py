from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamshard.pack.encode import escape_key
from streamshard.pack.files import read_unchanged, stamp_of
from streamshard.pack.image_loader import key_of_path, part_of_image

names = st.text("ab.J é", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))


@given(st.lists(names, min_size=1, max_size=3))
def test_suffixes_are_those_of_pathlib(parts: list[str]) -> None:
    path = PurePosixPath(*parts)
    assert part_of_image(str(path)) == path.suffix[1:].lower()
    assert key_of_path(str(path)) == escape_key(str(path.with_suffix("")))


def test_a_file_is_read_whole_though_its_size_says_less(tmp_path: Path) -> None:
    said = Path("/proc/version")  # of no size
    assert read_unchanged(str(said), None) == said.read_bytes() != b""
    (tmp_path / "a").write_bytes(b"x" * 300_000)
    stamp = stamp_of(str(tmp_path / "a"))
    assert read_unchanged(str(tmp_path / "a"), stamp) == b"x" * 300_000
    (tmp_path / "a").write_bytes(b"x" * 300_001)
    with pytest.raises(ValueError, match="300000 bytes when it was listed, 300001 now"):
        read_unchanged(str(tmp_path / "a"), stamp)
