"""What reading one sample finds. Runs in worker processes, so it imports no more than reading needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from setr_fast.data.classes import ClassTable
from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats.arrays import VOLUME_SUFFIXES
from setr_fast.data.formats.decode import mask_header
from setr_fast.data.layouts.folder import Sample
from setr_fast.data.masks import histogram, size_fault, stored_mask
from setr_fast.data.options import DataConfig
from setr_fast.data.reading import PictureReader

Level = Literal["full", "headers", "off"]


@dataclass
class Inspection:
    """What reading one sample gave; ``counts`` are stored ids, ``colours`` the mask palette's, by id."""

    sample: Sample
    faults: list[Fault]
    size: tuple[int, int] | None = None
    counts: Mapping[int, int] | None = None
    colours: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return everything but the sample as one line."""
        faults = [(str(f.path), f.what, f.remedy, f.severity) for f in self.faults]
        counts = None if self.counts is None else list(self.counts.items())
        return json.dumps([faults, self.size, counts, list(self.colours.items())], separators=(",", ":"))

    @classmethod
    def from_text(cls, sample: Sample, text: str) -> Inspection:
        """Rebuild what ``to_text`` wrote."""
        faults, size, counts, colours = json.loads(text)
        return cls(
            sample,
            [Fault(Path(path), what, remedy, severity) for path, what, remedy, severity in faults],
            None if size is None else (size[0], size[1]),
            None if counts is None else dict(counts),
            {value: tuple(colour) for value, colour in colours},
        )


@dataclass(frozen=True)
class Inspector:
    """How samples are looked at: all that decides what is found, apart from the files. Sent to worker processes.

    ``colours``: the class table, where masks hold its colours. ``table_is_bad``: there is one that cannot be used.
    """

    config: DataConfig
    level: Level
    colours: ClassTable | None = None
    table_is_bad: bool = False

    def texts(self, samples: Iterable[Sample]) -> list[str]:
        """Inspect samples, each into a line."""
        return [self.inspect(sample).to_text() for sample in samples]

    def inspect(self, sample: Sample) -> Inspection:
        """Read a sample and say what is wrong with it."""
        result = Inspection(sample, [])
        if self.level == "off":
            return result
        mask_size = None
        pictures = PictureReader.of(self.config)
        try:
            if self.level == "full":
                pixels = pictures.read(sample)
                result.size = pixels.shape[0], pixels.shape[1]
            else:
                result.size = pictures.size(sample)
        except FaultError as error:
            result.faults.append(error.fault)
        try:
            mask_size = self._mask(sample, result)
        except FaultError as error:
            result.faults.append(error.fault)
        if result.size is not None and mask_size is not None:
            fault = size_fault(sample, result.size, mask_size)
            result.faults += [fault] if fault is not None else []
        return result

    def _mask(self, sample: Sample, result: Inspection) -> tuple[int, int] | None:
        """Note which ids a mask holds; return its size."""
        config, rgb = self.config, self.config.mask_colours == "rgb"
        assert sample.mask is not None
        if self.level == "headers" or (rgb and self.table_is_bad):
            if sample.part is not None or sample.mask.suffix.lower() in (*VOLUME_SUFFIXES, ".npy"):
                return None
            header = mask_header(sample.mask, config.max_pixels, colours=rgb)
            return header.height, header.width
        columns = config.image_column, config.label_column
        mask = stored_mask(sample, config.max_pixels, config.crop_box, columns, self.colours)
        result.counts = histogram(mask.ids)
        if mask.palette is not None:
            result.colours = {value: tuple(map(int, mask.palette[value])) for value in result.counts}
        return mask.ids.shape[0], mask.ids.shape[1]


def stamp(sample: Sample) -> str:
    """Return sizes and times of change of a sample's files: what was found holds as long as they stay."""
    parts = []
    for path in dict.fromkeys((sample.image, sample.mask, sample.extra)):
        if path is not None:
            try:
                status = os.stat(path)
                parts.append(f"{status.st_size}:{status.st_mtime_ns}")
            except OSError:
                parts.append("-")
    return " ".join(parts)
