"""Frames of a video, one at a time, through PyAV (an optional dependency)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from setr_fast.errors import BackendError, DataError

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv"})


def is_video(path: Path) -> bool:
    """Return whether a file is taken for a video: by its suffix, in small letters or capitals."""
    return path.suffix.lower() in SUFFIXES


def require_reader(path: Path) -> None:
    """Raise BackendError where nothing can read a video."""
    if importlib.util.find_spec("av") is None:
        raise BackendError(f"{path}: a video needs PyAV, which is not installed; pip install av")


def frames(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the frames of a video's first picture stream, upright.

    Shapes: [H, W, 3] RGB each; the size may change between frames.
    Raises: DataError if the file is no video, or breaks off.
    """
    if not path.is_file():
        raise DataError(f"{path}: must exist, got no such file; check the name")
    av = importlib.import_module("av")
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: must hold a video stream, got none; give a video")
            for frame in container.decode(video=0):
                turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise, from the display matrix
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns % 4))
                count += 1
    except (av.FFmpegError, ValueError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: must be a complete video, got {reason!r} after {count} frames; copy the file again"
        ) from None
    if count == 0:
        raise DataError(f"{path}: must hold at least one frame, got none; copy the file again")
