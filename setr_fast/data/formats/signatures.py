"""What a file is by its content: signatures, PNG structure, EXIF orientation. Decodes no pixels.

Suffixes play no part here. Pillow could do most of this, but not without changing its process-wide settings,
writing warnings, or missing a checksum; so the few bytes that matter are read directly.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

HEAD_BYTES = 512
"""How much of a file is looked at to tell what it is."""
MAX_PIXELS = 200_000_000
"""Pixels of the largest picture that is decoded, unless an option says otherwise."""

_AGAIN = "copy or download the file again"
_SAVE = "save it as PNG or JPEG"

_SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("WEBP", 8, b"WEBP"),
    ("GIF", 0, b"GIF8"),
    ("BMP", 0, b"BM"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
)
_OTHERS: tuple[tuple[str, int, bytes], ...] = (
    ("an HEIC picture", 4, b"ftyphe"),
    ("an AVIF picture", 4, b"ftypavi"),
    ("a video", 4, b"ftyp"),
    ("a video", 0, b"\x1aE\xdf\xa3"),
    ("a JPEG 2000 picture", 4, b"jP  "),
    ("an OpenEXR picture", 0, b"v/1\x01"),
    ("a Photoshop file", 0, b"8BPS"),
    ("a PDF", 0, b"%PDF"),
    ("a BigTIFF", 0, b"II+\0"),
    ("a ZIP archive", 0, b"PK\x03\x04"),
    ("a gzip archive", 0, b"\x1f\x8b"),
    ("a NumPy array", 0, b"\x93NUMPY"),
    ("an HDF5 file", 0, b"\x89HDF"),
)


class Unusable(Exception):
    """The file's content breaks a rule: ``what`` (rule and value) and ``remedy``."""

    def __init__(self, what: str, remedy: str = _AGAIN) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def sniff(head: bytes) -> str:
    """Return the format (PNG, JPEG, WEBP, GIF, BMP or TIFF) that a file's first bytes announce.

    Raises: Unusable, saying what the file is instead.
    """
    if not head:
        raise Unusable("must hold a picture, got 0 bytes")
    for name, start, mark in _SIGNATURES:
        if head[start : start + len(mark)] == mark:
            return name
    if head.startswith(b"version https://git-lfs"):
        raise Unusable("must hold a picture, got a pointer of Git LFS", "run `git lfs pull` to fetch the picture")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")):
        raise Unusable("must hold a picture, got a web page (a failed download)", "download the file again")
    for name, start, mark in _OTHERS:
        if head[start : start + len(mark)] == mark:
            raise Unusable(f"must be PNG, JPEG, WebP, BMP, GIF or TIFF, got {name}", _SAVE)
    if all(byte in b"\t\r\n\f" or byte >= 32 for byte in head) and b"\x7f" not in head and _is_text(head):
        raise Unusable("must hold a picture, got plain text", "put the picture in its place")
    raise Unusable("must be PNG, JPEG, WebP, BMP, GIF or TIFF, got bytes of no known picture format")


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # only the last letter was cut by the end of the excerpt
    return True


@dataclass(frozen=True)
class PngHeader:
    """What a PNG says about itself before its pixels."""

    width: int
    height: int
    bit_depth: int
    colour_type: int
    exif: bytes
    animated: bool


def read_png_header(file: BinaryIO, checksums: bool, accept: Callable[[int, int], None]) -> PngHeader:
    """Walk the chunks of a PNG from its start to IEND; with ``checksums``, verify those that pixels depend on.

    Pillow does not look at the checksum of pixel data, and stops as soon as the last row is filled.
    ``accept`` sees width and height first and may raise, before anything large is read.
    Raises: Unusable for a cut or damaged file.
    """
    file.seek(8)
    header: tuple[int, int, int, int] | None = None
    exif, animated = b"", False
    while True:
        start = file.tell()
        lead = file.read(8)
        if len(lead) < 8:
            raise _cut(file)
        length, kind = struct.unpack(">I4s", lead)
        if header is None and (kind != b"IHDR" or length != 13):
            raise Unusable("must be a PNG that starts with IHDR, got a damaged header")
        critical = not kind[0] & 0x20
        if critical and (checksums or kind == b"IHDR"):
            body = _verified(file, kind, length, start)
        elif kind == b"eXIf":
            body = file.read(length)
            file.seek(4, 1)
        else:
            file.seek(length + 4, 1)
            body = b""
        animated = animated or kind == b"acTL"
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            if width == 0 or height == 0:
                raise Unusable(f"must have at least one pixel, got {width} x {height}")
            accept(width, height)
            header = (width, height, depth, colour)
        elif kind == b"eXIf":
            exif = body
        elif kind == b"IEND":
            assert header is not None
            return PngHeader(*header, exif, animated)


def _cut(file: BinaryIO) -> Unusable:
    return Unusable(f"must be a complete PNG, got the end of the file after {file.seek(0, 2)} bytes")


def _verified(file: BinaryIO, kind: bytes, length: int, start: int) -> bytes:
    """Read a chunk's body in pieces, so that a false length allocates nothing; returns short bodies only."""
    checksum = zlib.crc32(kind)
    body = b""
    left = length
    while left:
        piece = file.read(min(left, 1 << 20))
        if not piece:
            raise _cut(file)
        checksum = zlib.crc32(piece, checksum)
        left -= len(piece)
        body = piece if length <= 1 << 10 else b""
    stored = file.read(4)
    if len(stored) < 4:
        raise Unusable(f"must be a complete PNG, got the end of the file after {file.tell()} bytes")
    if struct.unpack(">I", stored)[0] != checksum:
        raise Unusable(f"must match its checksums, got a damaged {kind.decode('latin-1')} chunk at byte {start}")
    return body


def webp_size(head: bytes) -> tuple[int, int]:
    """Return (width, height) from the first 32 bytes of a WebP.

    Source: WebP container specification (VP8X), RFC 6386 section 9.1 (VP8), WebP lossless specification (VP8L).
    """
    kind = head[12:16]
    if len(head) < 30:
        raise Unusable(f"must be a complete WebP, got {len(head)} bytes")
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF


def exif_orientation(block: bytes) -> int:
    """Return the orientation 1..8 of an EXIF block; 1 (upright) where it is absent, invalid or unreadable.

    Source: CIPA DC-008 (EXIF 2.32), tag 0x0112 of IFD0.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, offset)
        for entry in range(entries):
            tag, kind, _ = struct.unpack_from(order + "HHI", block, offset + 2 + 12 * entry)
            if tag == 0x0112:
                layout = {1: "B", 3: "H", 4: "I"}.get(kind)
                value = struct.unpack_from(order + layout, block, offset + 10 + 12 * entry)[0] if layout else 1
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the block points outside itself
        return 1
    return 1
