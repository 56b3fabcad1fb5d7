"""Known data sets: official layouts read as they are unpacked, with their classes and ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.check import check_folder
from setr_fast.data.classes import read_class_table
from setr_fast.data.known import KNOWN, known_set
from setr_fast.data.options import DataConfig
from setr_fast.data.source import open_source
from setr_fast.errors import ConfigError

# (split, picture, mask) below the root, and (id in the mask -> training id); ids that are not there are not legal.
LAYOUTS = {
    "ade20k": (
        "ADEChallengeData2016",
        [
            ("training", "images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png"),
            ("validation", "images/validation/ADE_val_00000001.jpg", "annotations/validation/ADE_val_00000001.png"),
        ],
        {0: 255, 1: 0, 13: 12, 150: 149},
    ),
    "cityscapes": (
        "",
        [
            (
                split,
                f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png",
                f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelIds.png",
            )
            for split, city in (("train", "aachen"), ("train", "zurich"), ("val", "munster"))
        ],
        {0: 255, 4: 255, 7: 0, 11: 2, 26: 13, 29: 255, 33: 18},
    ),
    "cityscapes_train_ids": (
        "cityscapes",
        [
            (
                split,
                f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png",
                f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelTrainIds.png",
            )
            for split, city in (("train", "aachen"), ("val", "lindau"))
        ],
        {0: 0, 18: 18, 255: 255},
    ),
    "pascal_context": (
        "VOCdevkit/VOC2010",
        [
            ("train", "JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png"),
            ("val", "JPEGImages/2008_000003.jpg", "SegmentationClassContext/2008_000003.png"),
        ],
        {0: 0, 1: 1, 59: 59},
    ),
    "pascal_context_59": (
        "",
        [
            ("train", "JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png"),
            ("val", "JPEGImages/2008_000003.jpg", "SegmentationClassContext/2008_000003.png"),
        ],
        {0: 255, 1: 0, 59: 58},
    ),
    "pascal_voc": (
        "VOCdevkit/VOC2012",
        [
            ("train", "JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png"),
            ("val", "JPEGImages/2007_000033.jpg", "SegmentationClass/2007_000033.png"),
        ],
        {0: 0, 20: 20, 255: 255},
    ),
    "foodseg103": (
        "FoodSeg103/Images",
        [
            ("train", "img_dir/train/00000000.jpg", "ann_dir/train/00000000.png"),
            ("test", "img_dir/test/00000048.jpg", "ann_dir/test/00000048.png"),
        ],
        {0: 0, 103: 103},
    ),
}
LISTS = {
    "pascal_context": "SegmentationContext",
    "pascal_context_59": "SegmentationContext",
    "pascal_voc": "Segmentation",
}


def build(name: str, root: Path) -> None:
    """Write a tiny data set in its official layout: pictures of 48 x 40 pixels, masks with every id of the table."""
    below, files, ids = LAYOUTS[name]
    base = root / below
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    mask = np.resize(np.array(list(ids), np.uint8), (40, 48))
    for split, picture, target in files:
        for path, content in ((base / picture, pixels), (base / target, mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
        if name in LISTS:
            listing = base / "ImageSets" / LISTS[name] / f"{split}.txt"
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text(Path(picture).stem + "\n")
    if name.startswith("cityscapes"):  # files that share the folder
        for _, _, target in files:
            for other in ("gtFine_color", "gtFine_instanceIds"):
                stem = Path(target).name.rsplit("_gtFine_", 1)[0]
                Image.fromarray(pixels[..., 0]).save(base / Path(target).parent / f"{stem}_{other}.png")


def test_every_known_set_has_a_layout_here() -> None:
    assert set(LAYOUTS) == set(KNOWN)


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_layout_is_read_with_its_ids(name: str, tmp_path: Path) -> None:
    build(name, tmp_path)
    _, files, ids = LAYOUTS[name]
    config = DataConfig(root=tmp_path, dataset=name)
    for split in {config.train_split, config.val_split}:
        source = open_source(config, split)
        assert len(source) == sum(1 for part, _, _ in files if part == split)
        image, label = source.read(0)
        assert image.shape == (40, 48, 3)
        wanted = np.resize(np.array(list(ids.values()), np.uint8), (40, 48))
        np.testing.assert_array_equal(label, wanted)


@pytest.mark.parametrize("name", LAYOUTS)
def test_check_names_the_published_counts_and_nothing_else(name: str, tmp_path: Path) -> None:
    build(name, tmp_path)
    report = check_folder(DataConfig(root=tmp_path, dataset=name))
    assert not report.errors
    short = [fault for fault in report.warnings if "should have" in fault.what]
    assert len(short) == 2
    others = [fault.what for fault in report.warnings if fault not in short]
    assert all("no pixel of" in what or "the id 255" in what for what in others), others


def test_table_of_cityscapes_gives_19_classes_in_training_order() -> None:
    ids = read_class_table(known_set("cityscapes").table_path or "")
    trained = read_class_table(known_set("cityscapes_train_ids").table_path or "")
    assert ids.names == trained.names
    assert ids.palette == trained.palette
    assert ids.ids == (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    assert trained.ids == tuple(range(19))


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("ade20k", 150, "wall", "flag"),
        ("pascal_context", 60, "background", "wood"),
        ("pascal_context_59", 59, "aeroplane", "wood"),
        ("pascal_voc", 21, "background", "tvmonitor"),
        ("cityscapes", 19, "road", "bicycle"),
    ],
)
def test_tables_hold_the_published_classes(name: str, count: int, first: str, last: str) -> None:
    table = read_class_table(known_set(name).table_path or "")
    assert (table.num_classes, table.names[0], table.names[-1]) == (count, first, last)


def test_real_samples_are_read(shared: Path) -> None:
    ade = open_source(DataConfig(root=shared / "data" / "ade20k_samples", dataset="ade20k"), "validation")
    voc = open_source(DataConfig(root=shared / "data" / "pascal_voc_samples", dataset="pascal_voc"), "val")
    assert len(ade) == 2
    assert len(voc) == 1
    for source, classes in ((ade, 150), (voc, 21)):
        _, label = source.read(0)
        kept = label[label != 255]
        assert kept.size
        assert kept.max() < classes


def test_what_is_given_wins_over_the_known_set(tmp_path: Path) -> None:
    config = DataConfig(root=tmp_path, dataset="ade20k", val_split="release_test", label_offset=-2)
    assert (config.train_split, config.val_split, config.label_offset) == ("training", "release_test", -2)


def test_unknown_set_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="cityscapes"):
        DataConfig(dataset="cityscape")
