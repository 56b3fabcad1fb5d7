"""Videos through PyAV (an optional dependency): frames with their times in, an overlay with the same times out.

One frame at a time is held; sound is neither read nor written.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from setr_fast.engine.containers import missing_bytes
from setr_fast.errors import BackendError, DataError

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv"})
_CODECS = ("libx264", "mpeg4")
"""The first that this build of PyAV has."""
_LOOKED_AHEAD, _BYTES_AHEAD = 40, 4
"""Frames that x264 looks at before it writes the first, and bytes per pixel that each takes: at 3840x2160 it held 1.3
GiB, and 0.5 GiB with ten of them."""
_MISSING_SECONDS, _MISSING_SHARE = 1.0, 0.05
"""What may be missing at the end, the larger of both: the last frame may be shown for long, the length be a guess."""
_TICKS = Fraction(1, 90_000)
"""Unit of times where a stream has none: MPEG's clock."""


@dataclass(frozen=True)
class Frame:
    """A frame, upright. ``time``: when it is shown, counted in ``unit`` seconds, as the file has it."""

    pixels: npt.NDArray[np.uint8]
    time: int
    unit: Fraction

    @property
    def seconds(self) -> float:
        """When the frame is shown."""
        return float(self.time * self.unit)


def is_video(path: Path) -> bool:
    """Return whether a file is taken for a video: by its suffix, in small letters or capitals."""
    return path.suffix.lower() in SUFFIXES


def require_reader(path: Path) -> None:
    """Raise BackendError where nothing can read a video."""
    if importlib.util.find_spec("av") is None:
        raise BackendError(f"{path}: a video needs PyAV, which is not installed; pip install av")


def frames(path: Path) -> Iterator[Frame]:
    """Yield the frames of a video's first picture stream.

    Times are the stream's own, which need not be equally far apart; a frame without one, or with one that is not after
    its predecessor's, is shown one average frame later. The size may change between frames.
    Raises: DataError if the file is no video, or breaks off: by what it says of its own length, where a reader sees no
    more than an end.
    """
    if not path.is_file():
        raise DataError(f"{path}: must exist, got no such file; check the name")
    av = importlib.import_module("av")
    count, last = 0, None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: must hold a video stream, got none; give a video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            unit = Fraction(getattr(stream, "time_base", None) or _TICKS)
            step = max(round(1 / (getattr(stream, "average_rate", None) or 25) / unit), 1)
            promised = _promised(container, stream)
            for frame in _whole(container.decode(video=0), path):
                time = getattr(frame, "pts", None)
                if time is None or (last is not None and time <= last):
                    time = 0 if last is None else last + step
                turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise, from the display matrix
                pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns % 4))
                yield Frame(pixels, time, unit)
                count, last = count + 1, time
            if count and (missing := missing_bytes(path)):
                raise DataError(
                    f"{path}: must be a complete video, got one that lacks {missing} bytes at least, after {count} "
                    "frames; copy the file again"
                )
            if last is not None and promised is not None:
                shown = float((last - (getattr(stream, "start_time", None) or 0) + step) * unit)
                if promised - shown > max(_MISSING_SECONDS, _MISSING_SHARE * promised):
                    got = f"{shown:.1f} of {promised:.1f} seconds"
                    raise DataError(f"{path}: must be a complete video, got {got}; copy the file again")
    except (av.FFmpegError, ValueError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: must be a complete video, got {reason!r} after {count} frames; copy the file again"
        ) from None
    if count == 0:
        raise DataError(f"{path}: must hold at least one frame, got none; copy the file again")


def _whole(shown: Iterator[Any], path: Path) -> Iterator[Any]:
    """Yield frames, but not the last one of a file that breaks off within it: its lower part is made up."""
    damaged = None
    for frame in shown:
        if damaged is not None:
            yield damaged
        damaged = frame if getattr(frame, "is_corrupt", False) else None
        if damaged is None:
            yield frame
    if damaged is not None and not missing_bytes(path):
        yield damaged


def pixels_of(path: Path) -> int:
    """Return how many pixels a frame has, by the file's header; 0 where it has none, which reading it will say."""
    av = importlib.import_module("av")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return int(stream.width * stream.height)
    except (av.FFmpegError, OSError, ValueError, IndexError, AttributeError):
        return 0


def _promised(container: Any, stream: Any) -> float | None:
    """Return how many seconds of pictures the file says that it holds, if it says so of these alone."""
    if (ticks := getattr(stream, "duration", None)) is not None:
        return float(Fraction(ticks) * Fraction(stream.time_base))
    if (whole := getattr(container, "duration", None)) is not None and len(container.streams) == 1:
        return float(whole) / 1e6
    return None


class Writer:
    """Writes frames with given times into a video file, H.264 where this build of PyAV has it."""

    def __init__(self, container: Any, room: int | None = None) -> None:
        self._container, self._room = container, room
        self.written = 0  # packets; the first ones come late, as an encoder looks ahead
        self._av = importlib.import_module("av")
        self._stream: Any = None

    def add(self, frame: Frame, picture: npt.NDArray[np.uint8]) -> None:
        """Write ``picture`` [H, W, 3] to be shown when ``frame`` is; all take the first one's size."""
        if self._stream is None:
            self._stream = self._open(frame, picture)
        size = (self._stream.width, self._stream.height)
        if picture.shape[1::-1] != size:
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
        shown = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        shown.pts, shown.time_base = frame.time, frame.unit
        packets = self._stream.encode(shown)
        self.written += len(packets)
        self._container.mux(packets)

    def close(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())

    def _open(self, frame: Frame, picture: npt.NDArray[np.uint8]) -> Any:
        name = next(name for name in _CODECS if name in self._av.codecs_available)
        stream = self._container.add_stream(name)
        stream.height, stream.width = picture.shape[:2]
        if name == "libx264" and self._room is not None:
            ahead = self._room // (_BYTES_AHEAD * stream.height * stream.width)
            stream.options = {"rc-lookahead": str(min(ahead, _LOOKED_AHEAD))}
        # Colour at half the resolution, as players expect it, needs even sides.
        even = stream.width % 2 == stream.height % 2 == 0
        stream.pix_fmt = "yuv420p" if even or name != "libx264" else "yuv444p"
        stream.time_base = stream.codec_context.time_base = frame.unit  # as the file read: times stay what they are
        return stream


@contextmanager
def writing(path: Path, room: int | None = None) -> Iterator[Writer]:
    """Open an MP4 file to be written, whatever its name. ``room``: bytes for the frames that are looked ahead at."""
    av = importlib.import_module("av")
    with av.open(str(path), "w", format="mp4") as container:
        writer = Writer(container, room)
        yield writer
        writer.close()
