"""Result files of `eval`: counts of single pictures in little room, and reading a file that may hold anything."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from setr_fast.errors import DataError
from setr_fast.metrics.pictures import PictureCounts

Result = dict[str, Any]

FORMAT = "setr_fast.result/1"
MOST_BYTES = 2**31
"""A counts block that would unpack to more is refused: 50 000 pictures with 150 classes each are 240 MB."""


def packed(counts: PictureCounts) -> dict[str, Any]:
    """Return counts as JSON: zlib and base64 of int64, little-endian: lengths, classes, hits, labels, predictions."""
    columns = [counts.lengths, counts.classes, *counts.counts.T]
    data = b"".join(np.ascontiguousarray(column, "<i8").tobytes() for column in columns)
    return {"rows": len(counts.classes), "int64_zlib_base64": base64.b64encode(zlib.compress(data, 9)).decode()}


def unpacked(block: Any, pictures: int, num_classes: int, where: str) -> PictureCounts:
    """Return what ``packed`` made a block of.

    Raises: DataError for anything else, naming ``where``.
    """
    wrong = DataError(f"{where}: counts of single pictures must be as `eval` wrote them, got others; evaluate again")
    rows = block.get("rows") if isinstance(block, dict) else None
    if type(rows) is not int or not 0 <= rows <= pictures * num_classes:
        raise wrong
    size = 8 * (pictures + 4 * rows)
    if size > MOST_BYTES:
        raise wrong
    try:
        text = base64.b64decode(block.get("int64_zlib_base64"), validate=True)
        data = zlib.decompressobj().decompress(text, size + 1)
    except (TypeError, ValueError, binascii.Error, zlib.error):
        raise wrong from None
    if len(data) != size:
        raise wrong
    values = np.frombuffer(data, "<i8").astype(np.int64)
    lengths, classes = values[:pictures], values[pictures : pictures + rows]
    counts = values[pictures + rows :].reshape(3, rows).T.copy()
    fine = (
        (values >= 0).all()
        and (classes < num_classes).all()
        and (lengths <= num_classes).all()
        and lengths.sum() == rows
        and (counts[:, :1] <= counts[:, 1:]).all()
    )
    if not fine:
        raise wrong
    return PictureCounts(num_classes, lengths, classes, counts)


def read_result(path: Path) -> Result:
    """Return the content of a result file.

    Raises: DataError if it cannot be read or is none.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: result must be a file that can be read, got '{error.strerror}'") from None
    except (ValueError, RecursionError):
        found = None
    if not _is_result(found):
        raise DataError(f"{path}: result must be the JSON that `setr-fast eval --out` writes, got another file")
    if found.get("format", FORMAT) != FORMAT:
        raise DataError(
            f"{path}: result must be of format {FORMAT}, got {found['format']!r}; use the setr_fast that wrote it"
        )
    return found


def _is_result(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("IoU"), dict):
        return False
    hashes = found.get("sha256")
    if not isinstance(hashes, dict) or not isinstance(hashes.get("data"), str):
        return False
    scores = [found.get("mIoU", ""), found.get("aAcc", ""), found.get("mAcc", ""), *found["IoU"].values()]
    return all(score is None or (type(score) in (int, float) and abs(score) <= 1) for score in scores)
