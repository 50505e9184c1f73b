"""Tar members: header to bytes and back, and a strict scan.

Written headers are USTAR (POSIX.1-1988) with mtime 0, uid and gid 0 and mode 0644, so that the same
samples give the same bytes. The scan also reads PAX (POSIX.1-2001) and GNU long names, since
webdataset's writer makes a PAX header for every member. Unlike `tarfile`, which takes a damaged or
cut header for the end of the archive, the scan refuses whatever is not a whole tar.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

from streamshard.errors import DamagedError, UsageError

BLOCK = 512
END = bytes(2 * BLOCK)  # two zero blocks close a tar
MAX_NAME = 100  # bytes of the USTAR name field; longer names need extensions that readers trip over

_KEY_RULE = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_SKIPPED = re.compile(r"__[^/]*__(?:$|/)")
_NAME_RULE = re.compile(r"[A-Za-z0-9_/%+=,@~-]+\.[a-z0-9_.]+")

_FILE_TYPES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_LONG_NAME = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME}


class Member(NamedTuple):
    """One regular file of a tar.

    Attributes:
        name: The full name, long-name extensions resolved.
        header: Byte offset of the first header block, extensions included.
        offset: Byte offset of the data.
        size: Bytes of data.
    """

    name: str
    header: int
    offset: int
    size: int


def padding(size: int) -> int:
    """Zero bytes that fill `size` bytes of data up to a whole block."""
    return -size % BLOCK


def member_size(size: int) -> int:
    """Bytes that a member with so many bytes of data takes in a tar."""
    return BLOCK + size + padding(size)


def header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a regular file.

    Raises:
        UsageError: The name is outside the safe subset that every reader keeps (ASCII letters,
            digits and `_/%+=,@~-`, then a dot and a lower-case suffix; at most 100 bytes), or the
            size outside USTAR's 8 GiB.

    >>> len(header("000001.jpg", 17))
    512
    """
    if len(name) > MAX_NAME or not _NAME_RULE.fullmatch(name):
        raise UsageError(f"member name {name!r} is not plain ASCII `key.part` of at most 100 bytes")
    if not 0 <= size < 8**11:
        raise UsageError(f"member {name} has {size} bytes; USTAR holds less than 8 GiB")
    encoded, digits = name.encode("ascii"), b"%011o" % size
    checksum = _BLANK_SUM + sum(encoded) + sum(digits)
    return b"".join(
        (
            encoded.ljust(MAX_NAME, b"\0"),
            _BLANK[100:124],
            digits,
            _BLANK[135:148],
            b"%06o" % checksum,
            _BLANK[154:],
        )
    )


def _blank() -> bytes:
    """What all headers have the same, the digits of the checksum as spaces."""
    block = bytearray(BLOCK)
    block[100:108] = b"0000644\0"  # mode
    block[108:124] = b"0000000\0" * 2  # uid, gid
    block[136:148] = b"00000000000\0"  # mtime, behind the size
    block[148:156] = b" " * 8  # the checksum counts its own field as spaces
    block[156:157] = tarfile.REGTYPE
    block[257:265] = b"ustar\x0000"
    return bytes(block)


_BLANK_SUM = sum(_blank())
_BLANK = _blank()[:154] + b"\0 " + _blank()[156:]


def check_header(block: bytes | bytearray, name: str, size: int) -> str | None:
    """Say how the header block in front of a member's data differs from what the index tells.

    Returns None where it agrees. A name too long for the name field stands in an extension before
    this block, so only its size can be compared.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if block[:MAX_NAME].rstrip(b"\0") == encoded and block[124:135] == b"%011o" % size:
        return None  # what nearly every header looks like, in 1 µs where parsing takes 15
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return f"no tar header there ({error})"
    if found.size != size:
        return f"the tar says {found.size} bytes, the index {size}"
    # The index keeps suffixes in lower case.
    if len(encoded) <= MAX_NAME and name.isascii() and found.name.lower() != name.lower():
        return f"the tar has {found.name!r} there"
    return None


def split_name(name: str) -> tuple[str, str] | None:
    """Key and part of a member name, by webdataset's rule; None for what is not a sample's part.

    The key is the path up to the first dot of the base name, the part the rest in lower case.
    Names that begin with a `__x__` path component are left out.

    >>> split_name("train/0001.seg.PNG"), split_name("__meta__/x.json"), split_name("README")
    (('train/0001', 'seg.png'), None, None)
    """
    if _SKIPPED.match(name):
        return None
    match = _KEY_RULE.match(name)
    return (match[1], match[2].lower()) if match else None


def scan(file: BufferedIOBase, size: int, where: str) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar in order.

    Args:
        file: Open for reading, seekable.
        size: Bytes of the whole tar.
        where: What to call the tar in errors.

    Raises:
        DamagedError: A header is damaged, a member reaches past the end, the two closing zero
            blocks are missing, or a member is a link, a device or sparse.
    """
    position = begin = 0
    long_name: str | None = None
    long_size: int | None = None
    while True:
        info = _read_header(file, position, where)
        if info is None:
            break
        data = position + BLOCK
        is_extension = info.type in _LONG_NAME or info.type == tarfile.XGLTYPE
        length = info.size if is_extension or long_size is None else long_size
        position = data + length + padding(length)
        if length < 0 or position > size:
            raise DamagedError(
                f"{where}: truncated: member {long_name or info.name!r} at offset {data} "
                f"needs {length} bytes, the tar has {size}"
            )
        if is_extension:
            name, number = _read_extension(file, info, data, where)
            long_name, long_size = name or long_name, long_size if number is None else number
            continue
        if info.type in _FILE_TYPES:
            yield Member(long_name or info.name, begin, data, length)
        elif info.type != tarfile.DIRTYPE:
            raise DamagedError(
                f"{where}: member {info.name!r} at offset {begin} is a link, a device or sparse "
                f"(type {info.type!r}); only plain files can be samples"
            )
        begin, long_name, long_size = position, None, None


def _read_header(file: BufferedIOBase, position: int, where: str) -> tarfile.TarInfo | None:
    """The header block at `position`, or None at the two zero blocks that close the tar."""
    file.seek(position)
    block = file.read(BLOCK)
    if block == END[:BLOCK]:
        if file.read(BLOCK) != END[:BLOCK]:
            raise DamagedError(f"{where}: a lone zero block at offset {position}; tars end in two")
        return None
    if position == 0 and block[:2] == b"\x1f\x8b":
        raise DamagedError(f"{where}: gzip-compressed; shards are plain tar (gunzip it first)")
    if len(block) < BLOCK:
        raise DamagedError(
            f"{where}: truncated at offset {position + len(block)}: the end-of-tar mark is missing"
        )
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DamagedError(f"{where}: damaged header at offset {position}: {error}") from None


def _read_extension(
    file: BufferedIOBase, info: tarfile.TarInfo, data: int, where: str
) -> tuple[str | None, int | None]:
    """Name and size that a PAX or GNU long-name extension gives to the next member."""
    file.seek(data)
    payload = file.read(info.size)  # not more than the tar holds: the scan has checked
    if info.type == tarfile.XGLTYPE:
        return None, None
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return payload.rstrip(b"\0").decode("utf-8", "surrogateescape"), None
    fields = dict(_pax_records(payload, data, where))
    if any(field.startswith("GNU.sparse") for field in fields):
        raise DamagedError(f"{where}: sparse member at offset {data}; only plain files can be read")
    number = fields.get("size")
    if number is not None and not (number.isascii() and number.isdigit() and len(number) < 20):
        raise DamagedError(f"{where}: damaged PAX header at offset {data}: size {number[:40]!r}")
    return fields.get("path"), None if number is None else int(number)


def _pax_records(payload: bytes, data: int, where: str) -> Iterator[tuple[str, str]]:
    """The records of a PAX header: decimal length, space, field=value, newline."""
    while payload:
        digits, _, _ = payload.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 20 else 0
        record = payload[len(digits) + 1 : length]
        field, equals, value = record[:-1].partition(b"=")
        if not length or length > len(payload) or record[-1:] != b"\n" or not equals:
            raise DamagedError(f"{where}: damaged PAX header at offset {data}")
        try:
            yield field.decode("utf-8"), value.decode("utf-8", "surrogateescape")
        except UnicodeDecodeError:
            raise DamagedError(f"{where}: damaged PAX header at offset {data}") from None
        payload = payload[length:]
