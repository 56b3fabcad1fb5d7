"""Class ids out of MATLAB files (.mat, version 5), in which older data sets store their masks.

Only numbers in matrices and structures are read; nothing in the file is executed, and sizes are checked before memory
is taken.

Source: MathWorks, "MAT-File Format", Level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats.signatures import MAX_PIXELS

_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_STRUCT = 2
_NUMBERS = range(6, 16)
_COMPLEX = 0x800


class _Damaged(Exception):
    """The bytes are no such file: what they are instead."""


def read_mat_ids(path: Path, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the matrix of a variable, [H, W]; ``GTcls.Segmentation`` is the field of a structure.

    Raises: FaultError if the file is damaged, or holds no such matrix.
    """
    try:
        content = path.read_bytes()
        order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
        if order is None:
            raise _Damaged("no MATLAB file of version 5 (save it with -v6 or -v7)")
        found = dict(_variables(content[128:], order, 16 * max_pixels + 65536))
        variable, _, field = name.partition(".")
        if variable not in found:
            raise _Damaged(f"variables {', '.join(found) or 'none'}, not '{variable}'")
        matrix = _matrix(found[variable], order, field)
    except OSError as error:
        raise FaultError(Fault(path, f"must be readable, got '{error.strerror}'", "check its permissions")) from None
    except (_Damaged, struct.error, zlib.error, ValueError) as error:
        what = f"must hold the mask '{name}', got {error}"
        raise FaultError(Fault(path, what, "copy or download the file again")) from None
    return matrix


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of the elements that lie one after another; those of 4 bytes or less are packed."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, place)
        if kind >> 16:
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise _Damaged(f"the end of the file after {len(data)} bytes")
        yield kind, data[start : start + size]
        place = end


def _variables(data: bytes, order: str, most: int) -> Iterator[tuple[str, bytes]]:
    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            reader = zlib.decompressobj()
            inflated = reader.decompress(content, most)
            if reader.unconsumed_tail:
                raise _Damaged(f"more than {most} bytes")
            kind, content = next(iter(_elements(inflated, order)))
        if kind == _MATRIX:
            parts = list(_elements(content, order))
            if len(parts) < 3:
                raise _Damaged("an incomplete variable")
            yield parts[2][1].decode("ascii", "replace"), content


def _matrix(content: bytes, order: str, field: str = "") -> np.ndarray:
    """Return the numbers of a matrix element; with ``field``, of that field of a structure of one."""
    parts = list(_elements(content, order))
    (flags,) = struct.unpack_from(order + "I", parts[0][1])
    shape = [int(size) for size in np.frombuffer(parts[1][1], order + "i4")]
    kind = flags & 0xFF
    if field:
        if kind != _STRUCT or shape != [1, 1] or len(parts) < 5:
            raise _Damaged("no structure of one")
        (length,) = struct.unpack_from(order + "i", parts[3][1])
        text = parts[4][1]
        names = [text[i : i + length].split(b"\0")[0].decode("ascii", "replace") for i in range(0, len(text), length)]
        if field not in names or len(parts) <= 5 + names.index(field):
            raise _Damaged(f"fields {', '.join(names)}, not '{field}'")
        return _matrix(parts[5 + names.index(field)][1], order)
    if kind not in _NUMBERS or flags & _COMPLEX or len(shape) != 2 or len(parts) < 4:
        raise _Damaged("no plain matrix of numbers")
    stored, numbers = parts[3]
    if stored not in _TYPES:
        raise _Damaged(f"numbers of unknown kind {stored}")
    values = np.frombuffer(numbers, order + _TYPES[stored])
    if values.size != shape[0] * shape[1]:
        raise _Damaged(f"{values.size} numbers for {shape[0]} x {shape[1]}")
    return values.reshape(shape, order="F")
