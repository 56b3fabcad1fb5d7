"""Slices and volumes of Synapse multi-organ CT out of the challenge's NIfTI files.

Source: github Beckschen/TransUNet, datasets/README.md: Hounsfield units clipped to [-125, 275] and scaled to [0, 1],
13 labels reduced to 8 organs, training volumes as .npz slices, test volumes as one .h5 each.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats.nifti import nifti_shape, read_nifti
from setr_fast.errors import BackendError

if TYPE_CHECKING:
    from setr_fast.data.prepare.steps import Job

HOUNSFIELD = (-125.0, 275.0)
ORGANS = {1: 1, 2: 2, 3: 3, 4: 4, 6: 5, 7: 6, 8: 7, 11: 8}
"""Label of the challenge to class: spleen, right kidney, left kidney, gallbladder, liver, stomach, aorta, pancreas."""
TEST_CASES = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
TRAIN_CASES = (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)


def synapse_jobs(root: Path) -> Iterator[Job]:
    """Yield what there is to write: below ``root``, from ``img/img0001.nii.gz`` and ``label/label0001.nii.gz``.

    Raises: FaultError if no volume is there; BackendError without h5py, for the test volumes.
    """
    from setr_fast.data.prepare.steps import Job

    places = (root, root / "averaged-training-images", root / "RawData" / "Training", root / "Training")
    base = next((place for place in places if (place / "img").is_dir() and (place / "label").is_dir()), None)
    if base is None:
        rule = "must hold img/img0001.nii.gz and label/label0001.nii.gz, got no such folders"
        raise FaultError(Fault(root, rule, "unpack RawData.zip of the challenge there"))
    found = False
    for case in sorted((*TRAIN_CASES, *TEST_CASES)):
        pair = [_file(base, kind, case) for kind in ("img", "label")]
        if None in pair:
            continue
        found = True
        image, label = (path for path in pair if path is not None)
        if case in TEST_CASES:
            _require_h5py(root)
            target = root / "test_vol_h5" / f"case{case:04d}.npy.h5"
            yield Job(target, (image, label), partial(_whole, image, label))
            continue
        for part in range(nifti_shape(image)[2]):
            target = root / "train_npz" / f"case{case:04d}_slice{part:03d}.npz"
            yield Job(target, (image, label), partial(_slice, image, label, part))
    if not found:
        raise FaultError(Fault(base, "must hold volumes of the 30 cases, got none", "unpack RawData.zip there"))


def _file(base: Path, kind: str, case: int) -> Path | None:
    names = [f"{kind}{case:04d}.nii{end}" for end in (".gz", "")]
    return next((base / kind / name for name in names if (base / kind / name).is_file()), None)


@lru_cache(maxsize=2)
def _volume(image: Path, label: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a case's slices, [Z, Y, X] each: intensities in [0, 1], and classes."""
    low, high = HOUNSFIELD
    values = read_nifti(image).astype(np.float32)
    ids = read_nifti(label)
    if values.shape != ids.shape:
        rule = f"labels must be as large as {image.name}, {list(values.shape)}, got {list(ids.shape)}"
        raise FaultError(Fault(label, rule, "download both again"))
    table = np.zeros(256, np.float32)
    for theirs, ours in ORGANS.items():
        table[theirs] = ours
    scaled = (np.clip(values, low, high) - low) / (high - low)
    return scaled.transpose(2, 1, 0), table[ids.astype(np.uint8)].transpose(2, 1, 0)


def _slice(image: Path, label: Path, part: int) -> bytes:
    values, classes = _volume(image, label)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image=values[part], label=classes[part])
    return buffer.getvalue()


def _whole(image: Path, label: Path) -> bytes:
    values, classes = _volume(image, label)
    buffer = io.BytesIO()
    with importlib.import_module("h5py").File(buffer, "w") as file:
        file.create_dataset("image", data=values, compression="gzip", compression_opts=1, chunks=(1, *values.shape[1:]))
        file.create_dataset(
            "label", data=classes, compression="gzip", compression_opts=1, chunks=(1, *classes.shape[1:])
        )
    return buffer.getvalue()


def _require_h5py(root: Path) -> None:
    if importlib.util.find_spec("h5py") is None:
        raise BackendError(f"{root}: test volumes need h5py, which is not installed; pip install 'setr_fast[volumes]'")
