"""Labelled pictures by number: a data folder, or the built-in scenes.

A source reads one sample at a time, so that loaders, evaluation and checks share one way from file to array.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from setr_fast.data.classes import BINARY_REMEDY, MOST_CLASSES, ClassTable, find_class_table, read_class_table
from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.layouts.folder import Sample
from setr_fast.data.layouts.known import known_set
from setr_fast.data.layouts.scan import data_root, holds, samples_of
from setr_fast.data.masks import MaskReader, histogram, mask_path, size_fault, stored_mask
from setr_fast.data.options import DataConfig
from setr_fast.data.reading import PictureReader
from setr_fast.errors import ConfigError

logger = logging.getLogger("setr_fast")

THREADS = 4
"""Pillow decodes without holding the interpreter's lock."""


class Source(Protocol):
    """Labelled pictures of one split."""

    @property
    def classes(self) -> ClassTable: ...

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a picture, uint8 [H, W, C], RGB first, and its training ids, uint8 [H, W], 255 where ignored."""
        ...


class FolderSource:
    """One split of a data folder. ``classes`` given, as by a check that counted them, no mask is read before its turn.

    Raises: FaultError if the split or its class table cannot be used; ``read`` if a file cannot.
    """

    def __init__(self, config: DataConfig, split: str, classes: ClassTable | None = None) -> None:
        if config.root is None:
            raise ConfigError("data.root: must be a folder to read files from, got none; set --data.root")
        self.samples = samples_of(config, split)
        self.classes = resolve_classes(config, split) if classes is None else classes
        self.names = [sample.name for sample in self.samples]
        self.cuts = config.crop_box is not None
        """Whether pictures are parts of their files."""
        self._pictures = PictureReader.of(config)
        self._masks = MaskReader.of(config, self.classes)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return picture and training ids of a sample, both upright and of one size."""
        sample = self.samples[index]
        image = self._pictures.read(sample)
        label = self.read_label(index)
        fault = size_fault(sample, (image.shape[0], image.shape[1]), (label.shape[0], label.shape[1]))
        if fault is not None:
            raise FaultError(fault)
        return image, label

    def read_label(self, index: int) -> np.ndarray:
        """Return the training ids of a sample alone, uint8 [H, W]: for counting them."""
        return self._masks.read_sample(self.samples[index])


def open_source(config: DataConfig, split: str, classes: ClassTable | None = None) -> Source:
    """Return the samples of a split: ``config.shards``, the folder ``config.root``, or built-in scenes without either.

    ``classes``: those of the folder if they are known, as ``check.verify`` returns them; else they are looked up.
    """
    if config.shards is not None:
        from setr_fast.data.shards.source import ShardSource

        return ShardSource(config, split, classes)
    if config.root is not None:
        return FolderSource(config, split, classes)
    from setr_fast.data.scenes.builtin import BuiltinScenes

    counts = {config.train_split: config.builtin_train, config.val_split: config.builtin_val}
    if split not in counts:
        known = " or ".join(counts)
        raise ConfigError(f"data: split of the built-in scenes must be {known}, got '{split}'; set --data.root")
    name = "train" if split == config.train_split else "val"
    source: Source = BuiltinScenes(count=counts[split], size=config.builtin_size, seed=0, split=name)
    return source


def resolve_classes(config: DataConfig, split: str) -> ClassTable:
    """Return the classes of a data folder: the class table, else ``num_classes``, else those the masks use.

    Masks are counted on the training split where there is one, so that evaluation agrees with training.
    """
    assert config.root is not None
    classes = stated_classes(config)
    if classes is not None:
        return classes
    counted = config.train_split if holds(config, config.train_split) else split
    return count_classes(config, counted)


def stated_classes(config: DataConfig) -> ClassTable | None:
    """Return the classes that a class table or ``num_classes`` states, or nothing if they have to be counted."""
    assert config.root is not None
    known = None if config.dataset is None else known_set(config.dataset).table_path
    table = config.classes or known or find_class_table(config.root)
    if table is not None:
        classes = read_class_table(table)
        if config.num_classes not in (None, classes.num_classes):
            raise ConfigError(
                f"data.num_classes: must agree with {table}, which has {classes.num_classes} classes, "
                f"got {config.num_classes}; leave data.num_classes out"
            )
        if config.mask_colours == "rgb":
            classes.colour_ids()  # refuses tables without colours, or with one colour twice
        return classes
    if config.mask_colours == "rgb":
        rule = "a class table with colours must be given to read colour masks, got none"
        raise FaultError(Fault(config.root, rule, "add classes.csv (id,name,r,g,b), or set --data.classes"))
    if config.num_classes is None:
        return None
    listing = None if config.dataset is None else known_set(config.dataset).names
    return ClassTable.numbered(config.num_classes) if listing is None else _listed_classes(config, listing)


def _listed_classes(config: DataConfig, listing: str) -> ClassTable:
    """Return numbered classes, with the names that a list in the archive gives them: lines of id and name."""
    assert config.root is not None
    assert config.num_classes is not None
    classes = ClassTable.numbered(config.num_classes)
    root = data_root(config)
    path = next((p for folder in (root, *root.parents[:2]) if (p := folder / listing).is_file()), None)
    if path is None:
        return classes
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.split(maxsplit=1) for line in lines if line.strip()]
    names = {int(row[0]): row[1].strip() for row in rows if len(row) == 2 and row[0].isdecimal()}
    if sorted(names) != list(range(config.num_classes)):
        rule = f"must name the classes 0..{config.num_classes - 1}, one a line, got {len(names)} of them"
        raise FaultError(Fault(path, rule, "restore the file of the archive, or remove it"))
    return replace(classes, names=tuple(names[index] for index in range(config.num_classes)))


@lru_cache(maxsize=8)
def count_classes(config: DataConfig, split: str) -> ClassTable:
    """Return as many numbered classes as the masks of a split use: largest id + 1, ignored ids left out.

    Raises: FaultError naming the mask with the largest id if that makes too many classes.
    """
    assert config.root is not None
    samples = samples_of(config, split)
    with ThreadPoolExecutor(THREADS) as pool:
        used = list(pool.map(partial(_largest_id, config), samples))
    return classes_of_ids(config.root, split, dict(zip(map(mask_path, samples), used, strict=True)))


def classes_of_ids(root: Path, split: str, largest: dict[Path, int]) -> ClassTable:
    """Return numbered classes up to the largest training id of any mask, given that of each mask (-1: none)."""
    path = max(largest, key=lambda mask: (largest[mask], str(mask)))
    count = largest[path] + 1
    if count > MOST_CLASSES:
        rule = f"ids must be below {MOST_CLASSES} to be counted as classes, got {count - 1}"
        raise FaultError(Fault(path, rule, "give a class table, or set --data.num-classes"))
    if count < 2:
        rule = f"masks of split '{split}' must use two classes or more, got {count} (255 counts as ignored)"
        raise FaultError(Fault(root, rule, f"check the ids; if they are 0 and 255, {BINARY_REMEDY}"))
    logger.info("no class table: %d classes (ids 0..%d) counted from the masks of split '%s'", count, count - 1, split)
    return ClassTable.numbered(count)


def largest_training_id(config: DataConfig, ids: Sequence[int]) -> int:
    """Return the largest of a mask's ids after the offset, those ignored by rule left out; -1 if none is left."""
    kept = [value + config.label_offset for value in ids if value not in (255, config.ignore_index)]
    return max([-1, *kept])


def _largest_id(config: DataConfig, sample: Sample) -> int:
    columns = config.image_column, config.label_column
    mask = stored_mask(sample, config.max_pixels, config.crop_box, columns)
    return largest_training_id(config, list(histogram(mask.ids)))
