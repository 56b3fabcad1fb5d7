"""``setr-fast data prepare``: the preparation steps that official instructions ask for, each file written whole or not.

A step that was broken off goes on: what is there already, and newer than what it was made of, is left as it is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from setr_fast.data.classes import read_class_table
from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats.decode import load_mask
from setr_fast.data.formats.matlab import read_mat_ids
from setr_fast.data.layouts.known import TABLES, data_folder, known_set
from setr_fast.data.palette import default_palette
from setr_fast.errors import ConfigError
from setr_fast.fields import nearest
from setr_fast.files import atomic_write

THREADS = 4

CONTEXT_IDS = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
"""Of Pascal Context's 459 categories those that the 60 classes are, in order: their rank is the class.

Source: github fudan-zvg/SETR, tools/convert_datasets/pascal_context.py.
"""


@dataclass(frozen=True)
class Job:
    """A file to write, what it is made of, and how."""

    target: Path
    sources: tuple[Path, ...]
    make: Callable[[], bytes]
    always: bool = False
    """Write it again whatever is there: a list depends on more than the files it is made of."""

    @property
    def is_done(self) -> bool:
        """Whether the file is there and no older than what it is made of."""
        if self.always:
            return False
        try:
            made = os.stat(self.target).st_mtime_ns
            return all(os.stat(path).st_mtime_ns <= made for path in self.sources)
        except OSError:
            return False


def prepare(name: str, root: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Prepare a known data set below ``root``; return a line that says what was done.

    Raises: ConfigError for a set without such a step; FaultError where what it needs is missing or damaged.
    """
    if name not in STEPS:
        known_set(name)
        raise ConfigError(f"data prepare: must be one of {', '.join(STEPS)}, got {name!r}{nearest(name, list(STEPS))}")
    if not root.is_dir():
        raise FaultError(Fault(root, "must be the data set's folder, got none", "check the path"))
    return f"{name}: {carry_out(STEPS[name](root), progress)}"


def carry_out(steps: Iterable[Job], progress: Callable[[int, int], None] | None = None) -> str:
    """Write what is not there yet; return a line that says how much."""
    jobs = list(steps)
    wanted = [job for job in jobs if not job.is_done]
    with ThreadPoolExecutor(THREADS) as pool:
        for done, _ in enumerate(pool.map(_do, wanted), 1):
            if progress is not None:
                progress(done, len(wanted))
    kept = f", {len(jobs) - len(wanted)} were there already" if len(jobs) > len(wanted) else ""
    where = os.path.commonpath([job.target.parent for job in jobs])
    return f"{len(wanted)} files written below {where}{kept}"


def _do(job: Job) -> None:
    content = job.make()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(job.target, content)


def index_png(ids: np.ndarray, colours: Iterable[tuple[int, int, int]] | None = None) -> bytes:
    """Return a mask as the bytes of a PNG with a palette, its ids unchanged."""
    picture = Image.fromarray(np.ascontiguousarray(ids.astype(np.uint8)))
    picture.putpalette([value for colour in colours or default_palette(256) for value in colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def text_of(stems: Iterable[str]) -> bytes:
    """Return a split list as bytes."""
    return "".join(f"{stem}\n" for stem in stems).encode()


def listed(path: Path) -> list[str]:
    """Return the stems of a split list; an empty list where there is none."""
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def need(root: Path, pattern: str) -> list[Path]:
    """Return the files that match a pattern, sorted.

    Raises: FaultError if there is none.
    """
    found = sorted(path for path in root.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise FaultError(Fault(root, f"must hold {pattern}, got no such files", "unpack the archives there first"))
    return found


def _cityscapes(root: Path) -> Iterator[Job]:
    """Training ids beside the label ids, as ``createTrainIdLabelImgs.py`` of cityscapesScripts makes them."""
    base = data_folder(root, known_set("cityscapes").below)
    table = read_class_table(TABLES / "cityscapes.csv").lookup()[:256].copy()
    table[table > 18] = 255  # ids that mean nothing do not occur; were they there, they are ignored
    for source in need(base, "gtFine/*/*/*_gtFine_labelIds.png"):
        target = source.with_name(source.name.replace("_labelIds.png", "_labelTrainIds.png"))
        yield Job(target, (source,), partial(_looked_up, source, table))


def _looked_up(source: Path, table: np.ndarray, most: int = 255) -> bytes:
    """Return a mask whose ids are those that a table has for the stored ones, which may be up to ``most``."""
    raw = read_mat_ids(source, "LabelMap") if source.suffix == ".mat" else load_mask(source).ids
    low, high = int(raw.min(initial=0)), int(raw.max(initial=0))
    if low < 0 or high > most:
        raise FaultError(Fault(source, f"ids must be 0..{most}, got {low}..{high}", "use the masks as distributed"))
    return index_png(table[raw.astype(np.int64)])


def _context(root: Path) -> Iterator[Job]:
    """The 60 classes out of the 459 categories: ``trainval/*.mat`` (LabelMap) or PNGs of them, and both split lists."""
    base = data_folder(root, known_set("pascal_context").below)
    rank = np.zeros(460, np.uint8)
    rank[list(CONTEXT_IDS)] = np.arange(60, dtype=np.uint8)
    places = (base / "trainval", root / "trainval", base / "SegmentationClassContext459")
    found = (sorted(place.glob(kind)) for place in places for kind in ("*.mat", "*.png"))
    sources = next((paths for paths in found if paths), [])
    if not sources:
        raise FaultError(Fault(base, "must hold trainval/*.mat, got no such files", "unpack trainval.tar.gz there"))
    for source in sources:
        target = base / "SegmentationClassContext" / f"{source.stem}.png"
        yield Job(target, (source,), partial(_looked_up, source, rank, most=459))
    there = {source.stem for source in sources}
    for split in ("train", "val"):
        # The pictures of VOC 2010's detection lists are those of Pascal Context: 4998 and 5105.
        listing = base / "ImageSets" / "Main" / f"{split}.txt"
        target = base / "ImageSets" / "SegmentationContext" / f"{split}.txt"
        if listing.is_file():
            stems = [stem for stem in listed(listing) if stem in there]
            yield Job(target, (listing,), partial(text_of, stems), always=True)
        elif not target.is_file():
            rule = f"must hold ImageSets/Main/{split}.txt or ImageSets/SegmentationContext/{split}.txt, got neither"
            raise FaultError(Fault(base, rule, "unpack VOC 2010 there"))


def _voc_aug(root: Path) -> Iterator[Job]:
    """VOC's own masks and, for pictures it has none of, SBD's; the list ``trainaug`` is all of them but VOC's val."""
    base = data_folder(root, known_set("pascal_voc_aug").below)
    places = (root, base, root / "VOCaug", root / "benchmark_RELEASE", root / "SBD", root / "VOCdevkit" / "VOCaug")
    found = next((place / "dataset" for place in places if (place / "dataset" / "cls").is_dir()), None)
    if found is None:
        raise FaultError(Fault(root, "must hold SBD's dataset/cls/*.mat, got none", "unpack benchmark.tgz there"))
    own = {path.stem: path for path in need(base, "SegmentationClass/*.png")}
    target = base / "SegmentationClassAug"
    for stem, path in own.items():
        yield Job(target / f"{stem}.png", (path,), path.read_bytes)
    further = [path for path in need(found, "cls/*.mat") if path.stem not in own]
    for path in further:
        yield Job(target / f"{path.stem}.png", (path,), partial(_converted, path, "GTcls.Segmentation"))
    lists = base / "ImageSets" / "Segmentation"
    val = set(listed(lists / "val.txt"))
    if not val:
        raise FaultError(Fault(lists / "val.txt", "must name VOC's validation pictures, got none", "unpack VOC 2012"))
    stems = sorted(({*listed(lists / "train.txt")} | {path.stem for path in further}) - val)
    yield Job(lists / "trainaug.txt", (lists / "val.txt",), partial(text_of, stems), always=True)


def _converted(source: Path, name: str) -> bytes:
    return index_png(read_mat_ids(source, name))


def _coco_stuff_10k(root: Path) -> Iterator[Job]:
    """PNGs beside the .mat files, ids as they are: 0 is unlabelled, 1..182 the categories."""
    base = data_folder(root, known_set("coco_stuff_10k").below)
    for source in need(base, "annotations/*.mat"):
        yield Job(source.with_suffix(".png"), (source,), partial(_converted, source, "S"))


def _synapse(root: Path) -> Iterator[Job]:
    from setr_fast.data.prepare.volumes import synapse_jobs

    return synapse_jobs(root)


STEPS: dict[str, Callable[[Path], Iterator[Job]]] = {
    "cityscapes_train_ids": _cityscapes,
    "pascal_context": _context,
    "pascal_voc_aug": _voc_aug,
    "coco_stuff_10k": _coco_stuff_10k,
    "synapse": _synapse,
}
"""Preparation by data set: what each yields is written file by file."""
