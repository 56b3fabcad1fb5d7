"""Files of ``torch.save``: the zip format, and the one before torch 1.6. Read by the strict pickle reader.

``torch.load(weights_only=True)`` would do for weights, but it refuses what mmengine and timm leave beside them,
reserves as much memory as a file asks for, and cannot leave the optimizer's state on the disk.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from setr_fast.checkpoints.archive import STORED, Entry
from setr_fast.checkpoints.faults import Unusable, shortened
from setr_fast.checkpoints.reading import Reading
from setr_fast.checkpoints.records import DTYPES, TORCH, Storages, is_tensor, to_tensor
from setr_fast.checkpoints.unpickle import Buffer, Global, PersistentId, Span, read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\n" + LEGACY_MAGIC.to_bytes(10, "little")
_MAX_PICKLE = 256 << 20
_MAX_PLAIN = 100_000
_MAX_TEXT = 16 << 20
WRAPPERS = ("state_dict", "model")
Content = tuple[dict[str, Tensor], str, frozenset[str], dict[str, Any]]
"""Tensors, wrapper, the keys beside it, plain metadata."""
Locate = Callable[[Any], tuple[int, int] | None]
"""Key of a storage to where its bytes begin and how many there are."""


def read_zip(file: BinaryIO, entries: dict[str, Entry]) -> Content:
    """Read the zip format.

    Raises: Unusable, saying what is wrong.
    """
    found = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise Unusable(f"must be one torch checkpoint, got {len(found)} of them in one archive")
    root = found[0].removesuffix("data.pkl")
    if any(name.startswith(f"{root}code/") or name == f"{root}constants.pkl" for name in entries):
        raise Unusable("must hold weights, got a TorchScript program", "save the model's state_dict() instead")
    for name, entry in entries.items():
        if entry.method != STORED:
            told = shortened(name)
            raise Unusable(f"its entry {told} must be stored as torch does it, got a compressed one", "save it again")
    pickled = entries[found[0]]
    if pickled.size > _MAX_PICKLE:
        raise Unusable(f"its pickle must be at most {_MAX_PICKLE} bytes, got {pickled.size}")
    order = entries.get(f"{root}byteorder")
    if order and _bytes(file, order) != b"little":
        raise Unusable("must be little-endian, got another byte order", "save it again on a usual machine")
    data = _bytes(file, pickled)
    tree, _ = read_pickle(data, 0, TORCH)

    def locate(key: Any) -> tuple[int, int] | None:
        entry = entries.get(f"{root}data/{key}")
        return (entry.start, entry.length) if entry else None

    return _content(tree, locate, file, data)


def read_legacy(file: BinaryIO) -> Content:
    """Read the format before torch 1.6: pickles one after the other, then the storages.

    Raises: Unusable, saying what is wrong.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, at = read_pickle(data, 0, ())
        version, at = read_pickle(data, at, ())
        system, at = read_pickle(data, at, ())
        if magic != LEGACY_MAGIC or version != 1001:
            raise Unusable(f"must be version 1001 of torch's old format, got {shortened(version)}")
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise Unusable("must be little-endian, got another byte order", "save it again on a usual machine")
        widths: dict[Any, int] = {}

        def note(value: Any) -> PersistentId:
            match value:
                case ("storage", Global("torch", kind), str(key), *_) if kind.removesuffix("Storage") in DTYPES:
                    widths[key] = DTYPES[kind.removesuffix("Storage")].itemsize
            return PersistentId(value)

        tree, at = read_pickle(data, at, TORCH, note)
        keys, at = read_pickle(data, at, ())
        places = _legacy_places(keys, widths, data, at)
        return _content(tree, places.get, file, data)


def _legacy_places(keys: Any, widths: dict[Any, int], data: mmap.mmap, at: int) -> dict[Any, tuple[int, int]]:
    """Return where each storage's bytes lie: they follow each other, each after its number of elements."""
    places: dict[Any, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in widths or key in places or at + 8 > len(data):
            raise Unusable(f"must hold every storage once, got {shortened(key)} where none or the end belongs")
        (count,) = struct.unpack("<q", data[at : at + 8])
        length = count * widths[key]
        if count < 0 or at + 8 + length > len(data):
            raise Unusable(f"must hold all of storage {shortened(key)}, {length} bytes, got a file that is cut off")
        places[key] = (at + 8, length)
        at += 8 + length
    return places


def _reader(reading: Reading, locate: Locate) -> Storages:
    """Return a function that reads storages, each once."""
    read: dict[Any, Tensor] = {}

    def storage(key: Any, count: int, dtype: torch.dtype) -> Tensor:
        if key not in read:
            place = locate(key) if isinstance(key, str) else None
            if place is None or place[1] != count * dtype.itemsize:
                got = "none of that name" if place is None else f"{place[1]} bytes"
                raise Unusable(f"must hold storage {shortened(key)} of {count} elements of {dtype}, got {got}")
            raw = reading.array(place[0], (place[1],), np.dtype("u1"))
            read[key] = torch.from_numpy(raw).view(dtype) if count else torch.empty(0, dtype=dtype)
        if read[key].dtype != dtype or len(read[key]) != count:
            raise Unusable(f"storage {shortened(key)} must have one type and size, got two")
        return read[key]

    return storage


def _content(tree: Any, locate: Locate, file: BinaryIO, data: Buffer) -> Content:
    """Find the state dict in what was saved, and read its tensors alone."""
    if not isinstance(tree, dict):
        raise Unusable(f"must hold a dict of tensors, got a {type(tree).__name__}", "save the model's state_dict()")
    wrapper = next((key for key in WRAPPERS if isinstance(tree.get(key), dict) and tree[key]), "")
    state = tree[wrapper] if wrapper else tree
    named = {name: value for name, value in state.items() if isinstance(name, str)}
    if len(named) != len(state) or not any(is_tensor(value) for value in named.values()):
        told = ", ".join(shortened(key, 30) for key in list(tree)[:5]) or "nothing"
        raise Unusable(f"must hold a dict of named tensors, got one with {told}", "save the model's state_dict()")
    reading = Reading(file)
    storages = _reader(reading, locate)
    tensors = {name: to_tensor(name, value, storages, reading, data) for name, value in named.items()}
    reading.run()
    beside = frozenset(str(key) for key in tree if key != wrapper) if wrapper else frozenset[str]()
    meta: dict[str, Any] = {}
    if wrapper:
        inner = tree.get("meta")
        for key, value in [*tree.items(), *(inner.items() if isinstance(inner, dict) else ())]:
            if isinstance(key, str) and key not in (wrapper, "meta", "optimizer"):
                keep(meta, key, value, data)
    return tensors, wrapper, beside, meta


def keep(meta: dict[str, Any], key: str, value: Any, data: Buffer) -> None:
    """Add a value to the metadata if it is plain: texts, numbers, lists and dicts of them, not too many."""
    try:
        meta[key] = _plain(value, data, [_MAX_PLAIN], depth=0)
    except TypeError:
        return


def _plain(value: Any, data: Buffer, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth > 8:
        raise TypeError
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Span) and value.text and value.length <= _MAX_TEXT:
        return str(memoryview(data)[value.start : value.start + value.length], "utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, data, left, depth + 1) for item in value)
    if isinstance(value, dict):
        return {str(key): _plain(item, data, left, depth + 1) for key, item in value.items()}
    raise TypeError


def _bytes(file: BinaryIO, entry: Entry) -> bytes:
    file.seek(entry.start)
    return file.read(entry.length)
