"""From a sample's files to its picture: the three colours, further channels, parts of larger files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats import arrays, rows
from setr_fast.data.formats.decode import image_header, read_channels, read_image
from setr_fast.data.formats.signatures import MAX_PIXELS
from setr_fast.data.layouts.folder import Sample
from setr_fast.data.options import DataConfig

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class PictureReader:
    """What the pictures of a data set are. Small enough to be sent to worker processes."""

    channels: int = 3
    extra_range: tuple[float, float] | None = None
    box: Box | None = None
    max_pixels: int = MAX_PIXELS
    columns: rows.Columns = (None, None)

    @classmethod
    def of(cls, config: DataConfig) -> PictureReader:
        """Return the reader that a config asks for."""
        columns = config.image_column, config.label_column
        return cls(config.channels, config.extra_range, config.crop_box, config.max_pixels, columns)

    def read(self, sample: Sample) -> np.ndarray:
        """Return a sample's picture, uint8 [H, W, channels], upright.

        Raises: FaultError naming the file, what is wrong with it and what to do.
        """
        if sample.part is not None:
            pixels = self._part(sample)
        else:
            pixels = self.file(sample.image, sample.extra)
        return cut(pixels, self.box, sample.where)

    def size(self, sample: Sample) -> tuple[int, int]:
        """Return a picture's upright height and width from its header, before any crop box."""
        if sample.part is not None and sample.image.suffix.lower() in arrays.VOLUME_SUFFIXES:
            return arrays.part_size(sample.image)
        if sample.part is not None or sample.image.suffix.lower() == ".npy":
            pixels = self._part(sample) if sample.part is not None else arrays.read_npy(sample.image, self.max_pixels)
            return pixels.shape[0], pixels.shape[1]
        header = image_header(sample.image, self.max_pixels)
        return header.height, header.width

    def file(self, path: Path, extra: Path | None = None) -> np.ndarray:
        """Return the picture of one file, and of another with its further channels, uint8 [H, W, channels].

        Raises: FaultError if the channels are not as many as asked for, or the files differ in size.
        """
        if extra is None and self.channels != 3:
            return self._stored(path, self.channels)
        pixels = self._stored(path, 3) if path.suffix.lower() == ".npy" else read_image(path, self.max_pixels)
        if extra is None or self.channels == 3:
            return pixels
        further = self._stored(extra, self.channels - 3)
        if further.shape[:2] != pixels.shape[:2]:
            got, want = (f"{array.shape[1]} x {array.shape[0]}" for array in (further, pixels))
            rule = f"further channels must be as large as the picture {path}, {want}, got {got}"
            raise FaultError(Fault(extra, rule, "export them again at the picture's size"))
        return np.concatenate((pixels, further), axis=2)

    def _stored(self, path: Path, channels: int) -> np.ndarray:
        if path.suffix.lower() != ".npy":
            return read_channels(path, channels, self.max_pixels)
        array = arrays.read_npy(path, self.max_pixels)
        array = array[..., None] if array.ndim == 2 else array
        if array.shape[2] != channels:
            rule = f"array must be [H, W, {channels}], got {list(array.shape)}"
            raise FaultError(Fault(path, rule, "set --data.channels to what the pictures have"))
        return arrays.as_bytes(array, path, self.extra_range)

    def _part(self, sample: Sample) -> np.ndarray:
        assert sample.part is not None
        if sample.image.suffix.lower() in arrays.VOLUME_SUFFIXES:
            # Intensities of prepared volumes lie in [0, 1]; one grey value is spread over the three colours.
            plane = arrays.as_bytes(arrays.read_part(sample.image, sample.part, "image"), sample.where, (0.0, 1.0))
            return np.repeat(plane[..., None], self.channels, axis=2)
        data = rows.cell(sample.image, sample.part, self.columns, mask=False)
        if self.channels != 3:
            return read_channels(sample.where, self.channels, self.max_pixels, data)
        return read_image(sample.where, self.max_pixels, data)


def cut(array: np.ndarray, box: Box | None, where: Path) -> np.ndarray:
    """Return the part of a picture or mask within (left, top, right, bottom), all of it without a box.

    Raises: FaultError if the box reaches beyond it.
    """
    if box is None:
        return array
    left, top, right, bottom = box
    if bottom > array.shape[0] or right > array.shape[1]:
        rule = f"picture must hold the crop box {box}, got {array.shape[1]} x {array.shape[0]} pixels"
        raise FaultError(Fault(where, rule, "correct --data.crop-box, or leave the picture out"))
    return np.ascontiguousarray(array[top:bottom, left:right])
