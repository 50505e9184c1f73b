"""Small tars for the tests, made by streamshard, by `tarfile` and by GNU tar."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from streamshard.shard import tar

Files = Iterable[tuple[str, bytes]]


def written(files: Files) -> bytes:
    """A tar with the headers that streamshard writes."""
    members = [
        tar.header(name, len(data)) + data + bytes(tar.padding(len(data))) for name, data in files
    ]
    return b"".join(members) + tar.END


def by_tarfile(files: Files, format: int, mtime: float = 0) -> bytes:
    """A tar as Python's `tarfile` writes it; a name that ends in a slash is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.mtime = mtime
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def by_gnu_tar(folder: Path, *options: str) -> bytes:
    """A tar as GNU tar writes it, of all that a folder holds."""
    command = ["tar", "-c", "-f", "-", *options, "-C", str(folder), "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


def one_of_type(kind: bytes) -> bytes:
    """A tar with one plain file, then one member of this type."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.bin"))
        info = tarfile.TarInfo("b.bin")
        info.type, info.linkname = kind, "a.bin"
        archive.addfile(info)
    return out.getvalue()


def with_type(block: bytes, kind: bytes, size: bytes | None = None) -> bytes:
    """A header block with another type, perhaps another size field, and the right checksum."""
    changed = bytearray(block)
    changed[156:157] = kind
    if size is not None:
        changed[124:136] = size.ljust(12, b"\0")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def with_pax(payload: bytes, data: bytes = b"abc") -> bytes:
    """A tar whose one file has this PAX extension in front."""
    extension = with_type(tar.header("paxheader/a.bin", len(payload)), tarfile.XHDTYPE)
    return extension + payload + bytes(tar.padding(len(payload))) + written([("a.bin", data)])


def members(data: bytes) -> list[tar.Member]:
    """What the scan yields."""
    return list(tar.scan(io.BytesIO(data), len(data), "x.tar"))
