"""Volumes out of NIfTI-1 files (.nii, .nii.gz), as scanners' data sets come.

Source: the NIfTI-1 data format, nifti1.h of the DFWG: a header of 348 bytes, then the voxels, first axis fastest.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from setr_fast.data.faults import Fault, FaultError

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_HEADER = 348
MOST_VOXELS = 2**31


def nifti_shape(path: Path) -> tuple[int, ...]:
    """Return a volume's size without reading its voxels."""
    return _read(path, voxels=False).shape


def read_nifti(path: Path) -> np.ndarray:
    """Return a volume's values as its header scales them, float32 (whole numbers as stored). Shapes: [X, Y, Z].

    Raises: FaultError if the file is damaged, of another format, or larger than MOST_VOXELS.
    """
    return _read(path, voxels=True)


def _read(path: Path, *, voxels: bool) -> np.ndarray:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            header = file.read(_HEADER)
            if len(header) < _HEADER or header[344:347] != b"n+1":
                raise ValueError("no NIfTI-1 header")
            order = "<" if struct.unpack_from("<i", header)[0] == _HEADER else ">"
            dims = struct.unpack_from(order + "8h", header, 40)
            kind = struct.unpack_from(order + "h", header, 70)[0]
            offset, slope, shift = struct.unpack_from(order + "3f", header, 108)
            shape = dims[1:4]
            if kind not in _TYPES or not 3 <= dims[0] <= 7 or min(shape) < 1 or set(dims[4 : 1 + dims[0]]) - {1}:
                raise ValueError(f"numbers of type {kind}, sizes {list(dims[1 : 1 + max(dims[0], 0)])}")
            dtype = np.dtype(order + _TYPES[kind])
            count = int(np.prod(shape, dtype=np.int64))
            if count > MOST_VOXELS:
                raise ValueError(f"{count} voxels")
            if not voxels:
                return np.broadcast_to(np.zeros((), dtype), shape)
            file.read(max(int(offset) - _HEADER, 0))
            content = file.read(count * dtype.itemsize)
            if len(content) < count * dtype.itemsize:
                raise ValueError(f"the end of the file after {len(content)} bytes of voxels")
    except FileNotFoundError:
        raise FaultError(Fault(path, "must exist, got no such file", "check the name, or fetch the data")) from None
    except (OSError, EOFError, zlib.error, ValueError, struct.error) as error:
        rule = f"must be a complete NIfTI-1 volume of three dimensions, got {error}"
        raise FaultError(Fault(path, rule, "copy or download the file again")) from None
    volume = np.frombuffer(content, dtype).reshape(shape, order="F")
    if slope in (0.0, 1.0) and shift == 0.0:
        return volume
    return (volume * np.float32(slope) + np.float32(shift)).astype(np.float32)
