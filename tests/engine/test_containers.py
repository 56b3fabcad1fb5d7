"""Files that end before their own boxes do."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from setr_fast.engine.containers import missing_bytes


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def long_box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4sQ", 1, kind, 16 + len(body)) + body


FRAGMENT = box(b"moof", bytes(40)) + box(b"mdat", bytes(100))
WHOLE = box(b"ftyp", b"isom") + box(b"moov", bytes(60)) + FRAGMENT + FRAGMENT + long_box(b"mdat", bytes(50))


def index(*sizes: int, version: int = 0) -> bytes:
    entries = b"".join(struct.pack(">III", size, 0, 0) for size in sizes)
    places = struct.pack(">II", 0, 0) if version == 0 else struct.pack(">QQ", 0, 0)
    return box(b"sidx", bytes([version, 0, 0, 0]) + bytes(8) + places + struct.pack(">HH", 0, len(sizes)) + entries)


def lacking(folder: Path, content: bytes) -> int:
    (folder / "film.mp4").write_bytes(content)
    return missing_bytes(folder / "film.mp4")


def test_a_whole_file_lacks_nothing_and_a_cut_one_what_its_last_box_says(tmp_path):
    ends = {0, 12, 80, 128, 236, 284, 392, 458}
    for length in range(8, len(WHOLE) + 1):
        following = min(end for end in ends if end >= length)
        lacks = lacking(tmp_path, WHOLE[:length])
        if length in ends:
            assert lacks == 0
        else:
            assert 1 <= lacks <= following - length


@pytest.mark.parametrize("version", [0, 1])
def test_an_index_tells_of_fragments_that_are_not_there(tmp_path, version):
    content = box(b"ftyp", b"isom") + index(len(FRAGMENT), len(FRAGMENT), version=version)
    assert lacking(tmp_path, content + 2 * FRAGMENT) == 0
    assert lacking(tmp_path, content + FRAGMENT) == len(FRAGMENT)
    assert lacking(tmp_path, content) == 2 * len(FRAGMENT)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF" + bytes(90),
        b"\x1aE\xdf\xa3" + bytes(50),
        WHOLE + bytes(7),
        WHOLE + bytes(8),
        WHOLE + b"\0\0\0\4junk",
    ],
)
def test_other_files_and_what_follows_the_boxes_are_left_to_the_decoder(tmp_path, content):
    found = lacking(tmp_path, content)
    assert found == (1 if content == WHOLE + bytes(7) else 0)
