"""``.safetensors`` files, read into memory of their own (the library's tensors are windows into the file).

Source: the format's README, https://github.com/huggingface/safetensors (header, offsets without holes or overlaps).
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from setr_fast.checkpoints.faults import Unusable, is_shape, shortened
from setr_fast.checkpoints.reading import Reading

_MAX_HEADER = 8 << 20  # of 80,000 tensors; as Python's objects a hostile one takes 24 times as much
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the file's metadata (texts).

    Raises: Unusable for broken headers, and for tensors that overlap, leave holes or leave the file.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(_MAX_HEADER, size - 8):
        raise Unusable(f"its header must fit the file of {size} bytes, got a length of {length}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"its header must be JSON, got {shortened(error)}") from None
    if not isinstance(header, dict):
        raise Unusable("its header must be a JSON object, got something else")
    meta = header.pop("__metadata__", {})
    places = {name: _place(shortened(name), value) for name, value in header.items()}
    at = 0
    for name, (_, _, start, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if start != at:
            raise Unusable(f"{shortened(name)} must begin where the tensor before it ends, at {at}, got {start}")
        at = end
    if at != size - 8 - length:
        raise Unusable(f"must hold {at} bytes of tensors, got {size - 8 - length}")
    tensors, reading = {}, Reading(file)
    for name, (dtype, shape, start, end) in places.items():
        raw = reading.array(8 + length + start, (end - start,), np.dtype("u1"))
        tensors[name] = (
            torch.from_numpy(raw).view(dtype).reshape(shape) if len(raw) else torch.empty(shape, dtype=dtype)
        )
    reading.run()
    return tensors, meta if isinstance(meta, dict) else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name that occurs twice")
    return values


def _place(told: str, value: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    match value:
        case {"dtype": str(code), "shape": list() as shape, "data_offsets": [int(start), int(end)]} if (
            code in _DTYPES and is_shape(shape) and 0 <= start <= end
        ):
            dtype = _DTYPES[code]
        case _:
            raise Unusable(f"{told} must have a dtype, shape and offsets, got {shortened(value)}")
    if math.prod(shape) * dtype.itemsize != end - start:
        raise Unusable(f"{told} must have the bytes of shape {shortened(shape)}, got {end - start}")
    return dtype, tuple(shape), start, end
