"""Whether an MP4 or QuickTime file ends before its own boxes do, which a decoder takes for the end of the film."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

_FIRST = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot"})


def missing_bytes(path: Path) -> int:
    """Return how many bytes the file lacks at least: 0 if its boxes end where it does, or if it is of another kind.

    A fragmented file that ends between two fragments is not told from a whole one, unless it has an index (sidx) of
    them in front.

    Source: ISO/IEC 14496-12, 4.2 (boxes) and 8.16.3 (segment index).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(8)[4:] not in _FIRST:
            return 0
        at = end = 0
        while at + 8 <= size:
            length, kind, head = _box(file, at, size)
            if length < head:
                return 0  # no box: whatever follows the last one is somebody else's
            if kind == b"sidx" and at + length <= size:
                end = max(end, _indexed(file, at, head, length))
            at += length
        return max(at, end, at + 8 if at < size else 0) - size


def _box(file: BinaryIO, at: int, size: int) -> tuple[int, bytes, int]:
    """Return length, kind, and length of the head of the box that starts at ``at``."""
    file.seek(at)
    length, kind = struct.unpack(">I4s", file.read(8))
    if length == 1:  # the length follows, in 64 bits
        long = file.read(8)
        return (struct.unpack(">Q", long)[0] if len(long) == 8 else 16), kind, 16
    return (length or size - at), kind, 8


def _indexed(file: BinaryIO, at: int, head: int, length: int) -> int:
    """Return where the last piece ends that an index tells of."""
    file.seek(at + head, os.SEEK_SET)
    body = file.read(length - head)
    wide = body[:1] != b"\0"
    if len(body) < (32 if wide else 24):
        return 0
    offset = struct.unpack_from(">Q" if wide else ">I", body, 20 if wide else 16)[0]
    (count,) = struct.unpack_from(">H", body, 30 if wide else 22)
    begin = 32 if wide else 24
    sizes = [struct.unpack_from(">I", body, begin + 12 * index)[0] for index in range((len(body) - begin) // 12)][
        :count
    ]
    return at + length + offset + sum(piece & 0x7FFFFFFF for piece in sizes)
