"""Files of NumPy arrays: Paddle's ``.pdparams`` (a pickle) and ``.npz`` (a zip of ``.npy``; no pickle admitted)."""

from __future__ import annotations

import ast
import mmap
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from setr_fast.checkpoints.archive import STORED, Entry
from setr_fast.checkpoints.faults import DISTRUST, Unusable, is_shape, shortened
from setr_fast.checkpoints.flax_layout import Kernels, Place
from setr_fast.checkpoints.reading import Reading
from setr_fast.checkpoints.records import NUMPY_DTYPES, PADDLE, array_tensor, array_to_tensor, unwrap_named
from setr_fast.checkpoints.unpickle import read_pickle

NAMES = "StructuredToParameterName@@"
PARTS = "UnpackBigParamInfor@@"
_MAX_HEADER = 1 << 16
_MAX_GROWTH = 8  # unpacked over packed size; weights are noise and hardly shrink, zeros do
_FREE_GROWTH = 64 << 20
_ORDERS = ("<", ">", "|", "=")  # of bytes
_MAGIC = b"\x93NUMPY"


def read_paddle(file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a pickled dict of arrays; return the tensors, and the bookkeeping entries with the reason each is dropped.

    Raises: Unusable, saying what is wrong.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tree, _ = read_pickle(data, 0, PADDLE)
        if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
            raise Unusable(f"must hold a dict of named arrays, got a {type(tree).__name__}")
        dropped = {NAMES: "Paddle's internal names"} if tree.pop(NAMES, None) is not None else {}
        parts = tree.pop(PARTS, None)
        reading = Reading(file)
        arrays = {name: unwrap_named(value) for name, value in tree.items()}
        tensors = {name: array_tensor(name, value, reading, data, turn=True) for name, value in arrays.items()}
        reading.run()
        if parts is not None:
            dropped[PARTS] = "list of the parameters that are saved in parts"
            _join(tensors, parts)
        return tensors, dropped


def _join(tensors: dict[str, Tensor], parts: Any) -> None:
    """Put parameters together that were saved in parts (pickles before protocol 4 hold 4 GiB at most)."""
    for name, value in parts.items() if isinstance(parts, dict) else ():
        match value:
            case {"OriginShape": (list() | tuple()) as shape, "slices": list() as slices}:
                pieces = [tensors.pop(piece, None) for piece in slices if isinstance(piece, str)]
            case _:
                raise Unusable(f"its entry {PARTS} must name shape and parts of each parameter, got {shortened(value)}")
        whole = [piece for piece in pieces if piece is not None]
        count = sum(piece.numel() for piece in whole)
        wanted = 1
        for side in shape:
            wanted *= side if type(side) is int else -1
        fits = whole and is_shape(shape) and count == wanted and len({piece.dtype for piece in whole}) == 1
        if len(whole) != len(slices) or not fits:
            raise Unusable(f"{shortened(name)} must have all of its parts, got {len(whole)} with {count} elements")
        tensors[str(name)] = torch.cat([piece.flatten() for piece in whole]).reshape(tuple(shape))


def read_npz(file: BinaryIO, entries: dict[str, Entry]) -> dict[str, Tensor]:
    """Read the arrays of an ``.npz``.

    Raises: Unusable for entries that are no arrays of numbers, and for archives that unpack to many times their size.
    """
    packed, size = (sum(getattr(e, what) for e in entries.values()) for what in ("length", "size"))
    if size > _MAX_GROWTH * packed + _FREE_GROWTH:
        raise Unusable(f"must unpack to at most {_MAX_GROWTH} times its size, got {packed} bytes for {size}", DISTRUST)
    reading, places, tensors = Reading(file), dict[str, Place](), dict[str, Tensor]()
    for name, entry in entries.items():
        told = shortened(name)
        if not name.endswith(".npy"):
            raise Unusable(f"must hold only .npy entries, got {told}")
        found = _entry(told, file, entry)
        if isinstance(found, Tensor):
            tensors[_key(name)] = found
        else:
            places[_key(name)] = found
    kernels = Kernels(reading, places)
    read = {name: kernels.read(name) for name in places}
    reading.run()
    return {name: read[name] if name in read else tensors[name] for name in map(_key, entries)}


def _key(name: str) -> str:
    return name.removesuffix(".npy")


def _entry(told: str, file: BinaryIO, entry: Entry) -> Tensor | Place:
    """Return an array, or where it lies if it can be read as it is."""
    if entry.method == STORED:
        file.seek(entry.start)
        content: bytes | bytearray = file.read(min(entry.length, _MAX_HEADER + 12))
    else:
        content = _inflated(told, file, entry)
    dtype, fortran, shape, skip = _header(told, content[: _MAX_HEADER + 12])
    _exact(told, shape, dtype, entry.size - skip)
    if entry.method == STORED:
        if dtype.isnative and not fortran:
            return Place(entry.start + skip, shape, dtype)
        file.seek(entry.start)
        content = file.read(entry.length)
    array = np.frombuffer(content, dtype, offset=skip).reshape(shape[::-1] if fortran else shape)
    return array_to_tensor(array.T if fortran else array)


def _exact(told: str, shape: tuple[int, ...], dtype: np.dtype[Any], got: int) -> None:
    wanted = dtype.itemsize
    for side in shape:
        wanted *= side
    if wanted != got:
        raise Unusable(f"its entry {told} must have {wanted} bytes for shape {shortened(list(shape))}, got {got}")


def _inflated(told: str, file: BinaryIO, entry: Entry) -> bytearray:
    """Unpack an entry into as many bytes as the directory says, and not one more."""
    content = bytearray()
    machine = zlib.decompressobj(-15)
    file.seek(entry.start)
    left = entry.length
    while left and len(content) <= entry.size:
        piece = file.read(min(left, 1 << 20))
        left -= len(piece) or left
        while piece and len(content) <= entry.size:
            try:
                content += machine.decompress(piece, 1 << 24)
            except zlib.error as error:
                raise Unusable(f"its entry {told} must unpack, got {shortened(error)}") from None
            piece = machine.unconsumed_tail
    if len(content) != entry.size:
        raise Unusable(f"its entry {told} must unpack to {entry.size} bytes, got another number", DISTRUST)
    return content


def _header(told: str, head: bytes | bytearray) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Parse the header of a ``.npy``: dtype, column-major, shape, bytes before the data. Source: NEP 1."""
    start, layout = (10, "<H") if len(head) > 6 and head[6] == 1 else (12, "<I")
    if not head.startswith(_MAGIC) or len(head) < start:
        raise Unusable(f"its entry {told} must be a .npy, got other bytes")
    (length,) = struct.unpack_from(layout, head, 8)
    if start + length > len(head):
        raise Unusable(f"its entry {told} must have a header of at most {_MAX_HEADER} bytes, got {length}")
    try:
        values = ast.literal_eval(bytes(head[start : start + length]).decode("latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        values = None
    match values:
        case {"descr": str(code), "fortran_order": bool(fortran), "shape": tuple() as shape} if is_shape(shape):
            if code[code[:1] in _ORDERS :] in NUMPY_DTYPES:
                return np.dtype(code), fortran, shape, start + length
    what = "a broken header"
    if isinstance(values, dict):
        what = shortened(values.get("descr"))
        if what[what[:1] in _ORDERS :] in NUMPY_DTYPES:
            what = f"shape {shortened(values.get('shape'))}"
    raise Unusable(f"its entry {told} must be an array of numbers, got {what}")
