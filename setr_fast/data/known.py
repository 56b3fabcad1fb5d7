"""Public data sets, read as they are unpacked: what ``--data.dataset NAME`` stands for. Imports nothing heavy.

A known set is values for options that a user could give one by one (class table, split names, suffixes, offset), and
the sizes that its splits should have. Where a folder may be named one or two levels above the data, those levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from setr_fast.errors import ConfigError
from setr_fast.fields import nearest

TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class KnownSet:
    """One public data set."""

    title: str
    """What it is, for ``setr-fast data list``."""
    layout: str
    """Where pictures and masks lie, for the reader."""
    counts: Mapping[str, int]
    """Pictures with masks per split, as published."""
    table: str | None = None
    """Class table in ``tables``; none: the folder has to bring one."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Values of ``DataConfig`` that the layout asks for."""
    below: tuple[str, ...] = ()
    """Folders that the archive unpacks to: the root may be what holds them."""
    source: str = ""
    """Where the facts are from."""

    @property
    def table_path(self) -> Path | None:
        """The class table's file."""
        return None if self.table is None else TABLES / self.table


_CITYSCAPES_SIZES = {"train": 2975, "val": 500}
_CONTEXT = {
    "layout": "JPEGImages + SegmentationClassContext, ImageSets/SegmentationContext/{train,val}.txt",
    "counts": {"train": 4998, "val": 5105},
    "below": ("VOCdevkit/VOC2010", "VOC2010"),
}

KNOWN: dict[str, KnownSet] = {
    "ade20k": KnownSet(
        title="ADE20K, SceneParse150: 150 classes; id 0 (other) is ignored",
        layout="images/{training,validation} + annotations/{training,validation}",
        counts={"training": 20210, "validation": 2000},
        table="ade20k.csv",
        options={"train_split": "training", "val_split": "validation", "label_offset": -1},
        below=("ADEChallengeData2016",),
        source="sceneparsing.csail.mit.edu",
    ),
    "cityscapes": KnownSet(
        title="Cityscapes, fine labels: 19 of the 34 ids, the others are ignored; reads *_gtFine_labelIds.png",
        layout="leftImg8bit/{train,val}/CITY + gtFine/{train,val}/CITY",
        counts=_CITYSCAPES_SIZES,
        table="cityscapes.csv",
        options={"picture_suffix": "_leftImg8bit", "mask_suffix": "_gtFine_labelIds"},
        below=("cityscapes",),
        source="github mcordts/cityscapesScripts, helpers/labels.py",
    ),
    "cityscapes_train_ids": KnownSet(
        title="Cityscapes with masks converted to the 19 training ids; reads *_gtFine_labelTrainIds.png",
        layout="leftImg8bit/{train,val}/CITY + gtFine/{train,val}/CITY",
        counts=_CITYSCAPES_SIZES,
        table="cityscapes_train_ids.csv",
        options={"picture_suffix": "_leftImg8bit", "mask_suffix": "_gtFine_labelTrainIds"},
        below=("cityscapes",),
        source="github mcordts/cityscapesScripts, helpers/labels.py",
    ),
    "pascal_context": KnownSet(
        title="Pascal Context: 60 classes, background is one (official SETR and Segmenter, PaddleSeg)",
        table="pascal_context.csv",
        source="github open-mmlab/mmsegmentation, mmseg/datasets/pascal_context.py",
        **_CONTEXT,  # type: ignore[arg-type]
    ),
    "pascal_context_59": KnownSet(
        title="Pascal Context: 59 classes, background is ignored (higher scores than with 60, not comparable)",
        table="pascal_context_59.csv",
        options={"label_offset": -1},
        source="github open-mmlab/mmsegmentation, mmseg/datasets/pascal_context.py",
        **_CONTEXT,  # type: ignore[arg-type]
    ),
    "pascal_voc": KnownSet(
        title="Pascal VOC 2012: 21 classes, background is one; the border (255) is ignored",
        layout="JPEGImages + SegmentationClass, ImageSets/Segmentation/{train,val}.txt",
        counts={"train": 1464, "val": 1449},
        table="pascal_voc.csv",
        below=("VOCdevkit/VOC2012", "VOC2012"),
        source="host.robots.ox.ac.uk/pascal/VOC/voc2012",
    ),
    "foodseg103": KnownSet(
        title="FoodSeg103: 103 ingredients and background, which is a class",
        layout="img_dir/{train,test} + ann_dir/{train,test}",
        counts={"train": 4983, "test": 2135},
        options={"val_split": "test", "num_classes": 104},
        below=("FoodSeg103/Images", "Images"),
        source="github LARC-CMU-SMU/FoodSeg103-Benchmark-v1",
    ),
}


def known_set(name: str) -> KnownSet:
    """Return a known data set by name.

    Raises: ConfigError with the nearest name.
    """
    if name not in KNOWN:
        raise ConfigError(f"data.dataset: must be one of {', '.join(KNOWN)}, got {name!r}{nearest(name, list(KNOWN))}")
    return KNOWN[name]


def data_folder(root: Path, below: tuple[str, ...]) -> Path:
    """Return the folder that holds the data: the root, or the first of ``below`` that is there instead."""
    return next((root / name for name in below if (root / name).is_dir()), root)


def describe_known() -> str:
    """Return the known sets for ``setr-fast data list``."""
    lines = ["Data sets that --data.dataset names, each with --data.root at what its archive unpacks to:", ""]
    for name, known in KNOWN.items():
        counts = ", ".join(f"{split} {count}" for split, count in known.counts.items())
        lines += [f"  {name:22s}{known.title}", f"  {'':22s}{known.layout}; {counts}"]
    return "\n".join(lines)
