"""From mask files to training ids: colours to ids, ids to classes, and what is said about ids that mean nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from setr_fast.data.classes import ILLEGAL, ClassTable
from setr_fast.data.faults import Fault, FaultError, some
from setr_fast.data.formats import arrays, rows
from setr_fast.data.formats.decode import Mask, load_colours, load_mask
from setr_fast.data.formats.signatures import MAX_PIXELS
from setr_fast.data.layouts.folder import Sample
from setr_fast.data.layouts.known import known_set
from setr_fast.data.options import DataConfig
from setr_fast.data.palette import RGB
from setr_fast.data.reading import Box, cut

_MANY_IDS = 16
"""More illegal ids than this in one mask look like smoothing or compression, not like a forgotten class."""


def read_colour_mask(
    path: Path, classes: ClassTable, max_pixels: int = MAX_PIXELS, data: bytes | None = None
) -> np.ndarray:
    """Return the ids, uint16 [H, W], of a mask that holds the class table's colours. ``data``: the file's bytes, if
    ``path`` only says whose they are.

    Raises: FaultError if any pixel has another colour; the commonest of those are named.
    """
    pixels = load_colours(path, max_pixels, data).astype(np.int32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    table = sorted((r << 16 | g << 8 | b, value) for (r, g, b), value in classes.colour_ids().items())
    colours = np.array([colour for colour, _ in table], np.int32)
    place = np.searchsorted(colours, packed).clip(max=len(colours) - 1)
    unknown = colours[place] != packed
    if unknown.any():
        found, counts = np.unique(packed[unknown], return_counts=True)
        common = [_rgb(int(found[index])) for index in np.argsort(-counts, kind="stable")[:3]]
        rule = (
            f"mask must hold the class table's colours only, got {len(found)} others in {int(counts.sum())} pixels, "
            f"most often {some([str(colour) for colour in common])}"
        )
        remedy = "add the colours to the class table, or export the mask without smoothing"
        raise FaultError(Fault(path, rule, remedy))
    return np.array([value for _, value in table], np.uint16)[place]


def _rgb(packed: int) -> RGB:
    return packed >> 16, packed >> 8 & 255, packed & 255


@dataclass(frozen=True)
class MaskReader:
    """What the masks of a data set mean. Small enough to be sent to worker processes."""

    classes: ClassTable
    offset: int = 0
    ignore_index: int | None = None
    colours: bool = False
    max_pixels: int = MAX_PIXELS
    box: Box | None = None
    columns: rows.Columns = (None, None)
    prepare: str = ""
    """Command that turns the ids of the archive into these, where there is one."""
    lookup: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lookup", self.classes.lookup(self.offset, self.ignore_index))

    @classmethod
    def of(cls, config: DataConfig, classes: ClassTable) -> MaskReader:
        """Return the reader that a config asks for."""
        rgb = config.mask_colours == "rgb"
        columns = config.image_column, config.label_column
        known = None if config.dataset is None else known_set(config.dataset)
        command = (
            f"setr-fast data prepare {config.dataset} {config.root}" if known is not None and known.prepared else ""
        )
        box, offset = config.crop_box, config.label_offset
        return cls(classes, offset, config.ignore_index, rgb, config.max_pixels, box, columns, command)

    def load(self, path: Path, data: bytes | None = None) -> Mask:
        """Return a mask's ids as stored (for colour masks, those of the class table)."""
        if self.colours:
            return Mask(read_colour_mask(path, self.classes, self.max_pixels, data), None)
        return load_mask(path, self.max_pixels, data)

    def read(self, path: Path, data: bytes | None = None) -> np.ndarray:
        """Return a mask as training ids, uint8 [H, W], 255 where ignored. ``data``: its bytes, where ``path`` only says
        whose they are.

        Raises: FaultError naming the file and the ids that are not legal.
        """
        return self.trained(path, self.load(path, data).ids)

    def read_sample(self, sample: Sample) -> np.ndarray:
        """Return a sample's mask as training ids, wherever it is stored, and cut as its picture is.

        Raises: FaultError as ``read``.
        """
        colours = self.classes if self.colours else None
        ids = stored_mask(sample, self.max_pixels, self.box, self.columns, colours).ids
        return self.trained(mask_path(sample), ids)

    def trained(self, path: Path, ids: np.ndarray) -> np.ndarray:
        """Return the training ids, uint8, that stored ones stand for. ``path``: whose they are, for the message."""
        if ids.dtype == np.uint8:
            labels = self.lookup[:256][ids]
        elif ids.dtype == np.uint16:
            labels = self.lookup[ids]
        else:
            labels = np.where((ids >= 0) & (ids < 65536), self.lookup[ids & 0xFFFF], np.uint8(ILLEGAL))
        if (labels == ILLEGAL).any():
            fault = self.judge(path, histogram(ids))
            assert fault is not None
            raise FaultError(fault)
        return labels

    def judge(self, path: Path, counts: Mapping[int, int]) -> Fault | None:
        """Return what is wrong with a mask whose stored ids occur that often, or nothing."""
        wrong = [value for value in sorted(counts) if not self.is_legal(value)]
        if not wrong:
            return None
        legal = np.flatnonzero(self.lookup < ILLEGAL)
        ignored = [str(value) for value in np.flatnonzero(self.lookup > ILLEGAL)]
        got = some([f"{value} ({counts[value]} pixels)" for value in wrong])
        if len(wrong) > 5:
            got += f", the largest {wrong[-1]}"
        rule = f"ids must be {_ranges(legal)}{f', or ignored ({some(ignored)})' if ignored else ''}, got {got}"
        return Fault(path, rule, self._remedy(wrong, counts))

    def is_legal(self, value: int) -> bool:
        """Return whether a stored id is a class or ignored."""
        return 0 <= value < 65536 and self.lookup[value] != ILLEGAL

    def _remedy(self, wrong: list[int], counts: Mapping[int, int]) -> str:
        if self.prepare and len(wrong) > 1 and wrong[-1] < 1000:
            return f"run `{self.prepare}` if these are the ids of the archive; else correct the mask"
        if wrong[-1] >= 1000:
            return "convert instance ids (class * 1000 + number) to class ids"
        if len(wrong) > _MANY_IDS:
            return "export the mask again without smoothing or compression: its ids look blurred"
        if wrong == [self.classes.num_classes - self.offset] and 0 not in counts:
            return f"correct the mask, or set --data.label-offset {self.offset - 1} if its ids start one higher"
        return "correct the mask, add the id to the class table, or set --data.ignore-index"


def stored_mask(
    sample: Sample,
    max_pixels: int = MAX_PIXELS,
    box: Box | None = None,
    columns: rows.Columns = (None, None),
    colours: ClassTable | None = None,
) -> Mask:
    """Return the ids of a sample's mask as stored, wherever that is; ``colours``: the table whose colours it holds."""
    path, part, data = sample.mask, sample.part, None
    assert path is not None
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return Mask(cut(arrays.as_ids(arrays.read_npy(path, max_pixels), path), box, path), None)
    if part is not None and suffix in arrays.VOLUME_SUFFIXES:
        return Mask(cut(arrays.as_ids(arrays.read_part(path, part, "label"), sample.where), box, sample.where), None)
    if part is not None:
        path, data = sample.where, rows.cell(path, part, columns, mask=True)
    if colours is not None:
        return Mask(cut(read_colour_mask(path, colours, max_pixels, data), box, path), None)
    mask = load_mask(path, max_pixels, data)
    return Mask(cut(mask.ids, box, path), mask.palette)


def mask_path(sample: Sample) -> Path:
    """Return what messages call a sample's mask."""
    assert sample.mask is not None
    return sample.mask if sample.part is None else sample.where


def size_fault(sample: Sample, image: tuple[int, int], mask: tuple[int, int]) -> Fault | None:
    """Return what is wrong if picture and mask differ in upright (height, width), or nothing."""
    if image == mask:
        return None
    rule = (
        f"mask must be as large as its picture {sample.image}, {image[1]} x {image[0]} seen upright, "
        f"got {mask[1]} x {mask[0]}"
    )
    return Fault(mask_path(sample), rule, "export the mask again at the size of the upright picture")


def histogram(ids: np.ndarray) -> dict[int, int]:
    """Return how often each stored id occurs."""
    if ids.dtype == np.int32:
        found, counts = np.unique(ids, return_counts=True)
    else:
        counts = np.bincount(ids.ravel())
        found = np.flatnonzero(counts)
        counts = counts[found]
    return {int(value): int(count) for value, count in zip(found, counts, strict=True)}


def _ranges(values: np.ndarray) -> str:
    """Return ascending numbers as ``0..10, 12``."""
    if len(values) == 0:
        return "none"
    cuts = np.flatnonzero(np.diff(values) > 1) + 1
    runs = np.split(values, cuts)
    return some([str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs])
