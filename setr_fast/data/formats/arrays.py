"""Pictures and ids that are stored as arrays: .npy, .npz, and the HDF5 volumes of medical data.

Nothing in such a file is executed: pickled objects are refused.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from setr_fast.data.faults import Fault, FaultError, one_line
from setr_fast.data.formats.signatures import MAX_PIXELS
from setr_fast.errors import BackendError

VOLUME_SUFFIXES = (".npz", ".h5")
"""Files that hold a picture, or a stack of them, under ``image``, and its ids under ``label``."""


def read_npy(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the array of a .npy file.

    Raises: FaultError if it is cut, holds pickled objects, or is larger than pictures may be.
    """
    with _explained(path):
        # Mapped first: the header's sizes are checked before anything is read.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
            raise _refusal(path, f"array must be [H, W] or [H, W, C], got {getattr(array, 'shape', type(array))}")
        if 0 in array.shape or array.shape[0] * array.shape[1] > max_pixels:
            raise _refusal(path, f"array must hold 1 to {max_pixels} pixels, got {list(array.shape)}")
        return np.array(array)


def part_count(path: Path) -> int:
    """Return how many slices a volume file holds; 1 for a single one."""
    with _explained(path), _volume(path) as volume:
        return _slices(volume["image"].shape)


def part_size(path: Path) -> tuple[int, int]:
    """Return height and width of the slices of a volume file."""
    with _explained(path), _volume(path) as volume:
        shape = volume["image"].shape
        return int(shape[-2]), int(shape[-1])


def read_part(path: Path, part: int, key: str) -> np.ndarray:
    """Return one slice [H, W] of a volume's ``image`` or ``label``, as stored."""
    with _explained(path), _volume(path) as volume:
        array = volume[key]
        if array.shape != volume["image"].shape:
            raise _refusal(path, f"'{key}' must be as large as 'image', got {array.shape}, {volume['image'].shape}")
        return np.array(array if array.ndim == 2 else array[part])


def as_bytes(array: np.ndarray, path: Path, span: tuple[float, float] | None = None) -> np.ndarray:
    """Return measurements of any kind as bytes of the same shape.

    Bytes stay; 16 bits keep their high byte, as in pictures; of floating-point numbers ``span`` is spread over 0..255
    and what lies outside it is clipped. Without a span it is the smallest and largest number of this very array, as
    RGB-T-Glass does with temperatures; a constant array is 0.

    Raises: FaultError for other kinds of numbers, and for NaN and infinities.
    """
    if span is None and array.dtype == np.uint8:
        return array
    if span is None and array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind not in "fiu":
        raise _refusal(path, f"array must hold numbers, got {array.dtype}")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise _refusal(path, "array must be finite, got NaN or infinite values")
    low, high = (float(values.min()), float(values.max())) if span is None else span
    scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return np.clip(scaled + 0.5, 0, 255).astype(np.uint8)


def as_ids(array: np.ndarray, path: Path) -> np.ndarray:
    """Return an array of ids [H, W] as uint8, uint16 or int32, unchanged.

    Raises: FaultError unless all are whole numbers that fit.
    """
    if array.ndim != 2:
        raise _refusal(path, f"mask must be [H, W], got {list(array.shape)}")
    if array.dtype in (np.uint8, np.uint16, np.int32):
        return array
    if array.dtype.kind not in "fiub":
        raise _refusal(path, f"mask must hold whole class ids, got {array.dtype}")
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high) and -(2**31) <= low <= high < 2**31):
        raise _refusal(path, f"mask must hold class ids, got numbers from {low} to {high}")
    ids = array.astype(np.int32)
    if not np.array_equal(ids, array):
        raise _refusal(path, "mask must hold whole class ids, got fractions")
    return ids.astype(np.uint8) if low >= 0 and high < 256 else ids


@contextmanager
def _volume(path: Path) -> Iterator[Any]:
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            yield {key: archive[key] for key in ("image", "label")}
        return
    if importlib.util.find_spec("h5py") is None:
        raise BackendError(
            f"{path}: an HDF5 volume needs h5py, which is not installed; pip install 'setr_fast[volumes]'"
        )
    with importlib.import_module("h5py").File(path, "r") as file:
        yield {key: file[key] for key in ("image", "label")}


def _slices(shape: tuple[int, ...]) -> int:
    assert len(shape) in (2, 3), "checked by the caller's message"
    return 1 if len(shape) == 2 else int(shape[0])


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (FaultError, BackendError):
        raise
    except FileNotFoundError:
        raise FaultError(Fault(path, "must exist, got no such file", "check the name, or fetch the data")) from None
    except KeyError as error:
        raise _refusal(path, f"must hold 'image' and 'label', got no {one_line(str(error))}") from None
    except MemoryError:
        raise FaultError(Fault(path, "must fit into memory, got too large an array", "cut it up")) from None
    except Exception as error:  # readers of foreign bytes raise nearly anything
        reason = one_line(str(error)) or type(error).__name__
        raise FaultError(
            Fault(path, f"must be a complete array file, got '{reason}'", "copy or download the file again")
        ) from None


def _refusal(path: Path, what: str) -> FaultError:
    return FaultError(Fault(path, what, "store it as docs/data.md says"))
