"""The directory of a zip file, read strictly: where each entry's bytes lie, all inside the file, none twice.

``zipfile`` reads what it can; weights are read at most once, and only from files whose directory is beyond doubt.
Source: PKWARE APPNOTE 6.3, sections 4.3 to 4.5.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from setr_fast.checkpoints.faults import AGAIN, Unusable, shortened

STORED, DEFLATED = 0, 8
_MAX_DIRECTORY = 64 << 20  # bytes; a checkpoint with 10,000 tensors has 1 MiB
_END, _END64, _LOCATOR, _ENTRY, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive."""

    name: str
    method: int
    """STORED or DEFLATED."""
    start: int
    """Where its bytes begin."""
    length: int
    """Bytes in the archive."""
    size: int
    """Bytes when unpacked, as the directory says."""


def read_directory(file: BinaryIO) -> dict[str, Entry]:
    """Return the entries by name, folders left out.

    Raises: Unusable for archives that are cut off, encrypted, or whose entries overlap, repeat or leave the file.
    """
    end = os.fstat(file.fileno()).st_size
    try:
        return _checked(file, _listing(file, end))
    except struct.error:
        raise Unusable("its zip directory must be whole, got one that is cut off") from None


def _listing(file: BinaryIO, end: int) -> list[tuple[str, int, int, int, int]]:
    """Return (name, method, local header, length, size) of each entry."""
    tail_at = max(0, end - 22 - 0xFFFF)
    tail = _at(file, tail_at, end - tail_at)
    found = tail.rfind(_END)
    if found < 0:
        raise Unusable("must end with the directory of a zip file, got a file that is cut off")
    count, length, start = struct.unpack_from("<10xHII", tail, found)
    if (tail_at + found >= 20 and 0xFFFFFFFF in (length, start)) or count == 0xFFFF:
        (record,) = struct.unpack("<4s4xQ4x", _at(file, tail_at + found - 20, 20))[1:]
        signature, count, length, start = struct.unpack("<4s28xQQQ", _at(file, record, 56))
        if signature != _END64:
            raise Unusable("its zip directory must be sound, got a broken one")
    if length > _MAX_DIRECTORY or start + length > end:
        raise Unusable(f"its zip directory must lie in the file and below {_MAX_DIRECTORY} bytes, got {length} bytes")
    directory = _at(file, start, length)
    listing, at = [], 0
    for _ in range(count):
        (signature, flags, method, packed, size, name_n, extra_n, comment_n, header) = struct.unpack_from(
            "<4s4xHH8xIIHHH8xI", directory, at
        )
        if signature != _ENTRY:
            raise Unusable("its zip directory must be sound, got a broken one")
        name = directory[at + 46 : at + 46 + name_n].decode("utf-8", "replace")
        extra = directory[at + 46 + name_n : at + 46 + name_n + extra_n]
        size, packed, header = _long_fields(extra, size, packed, header)
        if flags & 1:
            raise Unusable(f"its entry {shortened(name)} must be readable, got an encrypted one")
        listing.append((name, method, header, packed, size))
        at += 46 + name_n + extra_n + comment_n
    return listing


def _long_fields(extra: bytes, *fields: int) -> tuple[int, ...]:
    """Replace the fields that are all ones by those of the zip64 record."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return tuple(next(values, field) if field == 0xFFFFFFFF else field for field in fields)
        at += 4 + length
    return fields


def _checked(file: BinaryIO, listing: list[tuple[str, int, int, int, int]]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    before, end = 0, os.fstat(file.fileno()).st_size
    for name, method, header, packed, size in sorted(listing, key=lambda item: item[2]):
        told = shortened(name)
        signature, name_n, extra_n = struct.unpack("<4s22xHH", _at(file, header, 30))
        start = header + 30 + name_n + extra_n
        if signature != _LOCAL or header < before or start + packed > end:
            raise Unusable(f"its entry {told} must have bytes of its own inside the file, got bytes {header}..")
        before = start + packed
        if name.endswith("/") and not size:
            continue
        if name in entries:
            raise Unusable(f"its entries must have different names, got {told} twice", AGAIN)
        if method not in (STORED, DEFLATED):
            raise Unusable(f"its entry {told} must be stored or deflated, got zip method {method}", "pack it again")
        if method == STORED and packed != size:
            raise Unusable(f"its entry {told} must be {packed} bytes long, got a directory that says {size}")
        entries[name] = Entry(name, method, start, packed, size)
    return entries


def _at(file: BinaryIO, start: int, length: int) -> bytes:
    if not 0 <= start < 1 << 62:
        raise Unusable("its zip directory must lie in the file, got a place outside it")
    file.seek(start)
    return file.read(length)
