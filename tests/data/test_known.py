"""Known data sets: official layouts read as they are unpacked, with their classes and ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.checks.check import check_folder
from setr_fast.data.classes import read_class_table
from setr_fast.data.layouts.known import KNOWN, known_set
from setr_fast.data.options import DataConfig
from setr_fast.data.shards.write import write_shards
from setr_fast.data.source import open_source
from setr_fast.errors import ConfigError, DataError

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
    "pascal_voc_aug": (
        "VOCdevkit/VOC2012",
        [
            ("trainaug", "JPEGImages/2008_000008.jpg", "SegmentationClassAug/2008_000008.png"),
            ("val", "JPEGImages/2007_000033.jpg", "SegmentationClassAug/2007_000033.png"),
        ],
        {0: 0, 20: 20, 255: 255},
    ),
    "camvid": (
        "CamVid",
        [
            ("train", "train/0001TP_006690.png", "trainannot/0001TP_006690.png"),
            ("val", "val/0016E5_07959.png", "valannot/0016E5_07959.png"),
        ],
        {0: 0, 10: 10, 11: 255},
    ),
    "coco_stuff_164k": (
        "",
        [
            ("train2017", "images/train2017/000000000009.jpg", "annotations/train2017/000000000009.png"),
            ("val2017", "images/val2017/000000000139.jpg", "annotations/val2017/000000000139.png"),
        ],
        {0: 0, 10: 10, 11: 255, 12: 11, 181: 170, 255: 255},
    ),
    "coco_stuff_10k": (
        "cocostuff-10k-v1.1",
        [
            ("train", "images/COCO_train2014_000000000077.jpg", "annotations/COCO_train2014_000000000077.png"),
            ("test", "images/COCO_train2014_000000001942.jpg", "annotations/COCO_train2014_000000001942.png"),
        ],
        {0: 255, 1: 0, 12: 255, 13: 11, 182: 170},
    ),
    "urbanlf_real": (
        "UrbanLF_Real",
        [
            ("train", "train/Image1/5_5.png", "train/Image1/label.npy"),
            ("train", "train/Image2/5_5.png", "train/Image2/label.npy"),
            ("val", "val/Image9/5_5.png", "val/Image9/label.npy"),
        ],
        {0: 255, 1: 0, 14: 13},
    ),
    "urbanlf_syn": (
        "UrbanLF_Syn",
        [
            ("train", "train/Image1/5_5.png", "train/Image1/5_5_label.npy"),
            ("val", "val/Image9/5_5.png", "val/Image9/5_5_label.npy"),
        ],
        {0: 255, 1: 0, 14: 13},
    ),
    "dada_seg": (
        "DADA_seg",
        [("val", "leftImg8bit/val/1/001/0040.jpg", "gtFine/val/1/001/0040_gtFine_labelTrainIds.png")],
        {0: 0, 18: 18, 255: 255},
    ),
    "rgbt_glass": (
        "",
        [
            (split, f"{split}/scene_{scene}/{number}/rgb.png", f"{split}/scene_{scene}/{number}/mask.png")
            for split, scene, number in (("train", 1, 1), ("train", 1, 2), ("train", 2, 1), ("test", 1, 1))
        ],
        {0: 0, 255: 1},
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
    "pascal_context": "ImageSets/SegmentationContext",
    "pascal_context_59": "ImageSets/SegmentationContext",
    "pascal_voc": "ImageSets/Segmentation",
    "pascal_voc_aug": "ImageSets/Segmentation",
    "coco_stuff_10k": "imageLists",
}
SIZES = {"dada_seg": (660, 1584)}


def build(name: str, root: Path) -> None:
    """Write a tiny data set in its official layout: pictures of 48 x 40 pixels, masks with every id of the table."""
    if name == "synapse":
        build_synapse(root)
        return
    below, files, ids = LAYOUTS[name]
    base, size = root / below, SIZES.get(name, (40, 48))
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    mask = np.resize(np.array(list(ids), np.uint8), size)
    for split, picture, target in files:
        for path, content in ((base / picture, pixels), (base / target, mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npy":
                np.save(path, content)
            else:
                Image.fromarray(content).save(path)
        if name == "rgbt_glass":
            np.save((base / picture).with_name("temperature.npy"), 20 + 10 * np.random.default_rng(1).random(size))
            Image.fromarray(mask).save((base / picture).with_name("boundary.png"))
        if name.startswith("urbanlf"):
            Image.fromarray(pixels).save((base / picture).with_name("1_1.png"))
        if name in LISTS:
            listing = base / LISTS[name] / f"{split}.txt"
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text(Path(picture).stem + "\n")
    if name.startswith("cityscapes"):  # files that share the folder
        for _, _, target in files:
            for other in ("gtFine_color", "gtFine_instanceIds"):
                stem = Path(target).name.rsplit("_gtFine_", 1)[0]
                Image.fromarray(pixels[..., 0]).save(base / Path(target).parent / f"{stem}_{other}.png")


def build_synapse(root: Path) -> None:
    """Write two training slices and a test volume of three as TransUNet's prepared set has them."""
    h5py = pytest.importorskip("h5py")
    label = np.resize(np.arange(9), (3, 40, 48)).astype(np.float32)
    image = np.random.default_rng(0).random((3, 40, 48)).astype(np.float32)
    (root / "train_npz").mkdir(parents=True)
    for part in (0, 1):
        np.savez(root / f"train_npz/case0005_slice00{part}.npz", image=image[part], label=label[part])
    (root / "test_vol_h5").mkdir()
    with h5py.File(root / "test_vol_h5/case0001.npy.h5", "w") as file:
        file["image"], file["label"] = image, label


def test_every_known_set_has_a_layout_here() -> None:
    assert {*LAYOUTS, "synapse"} == set(KNOWN)


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_layout_is_read_with_its_ids(name: str, tmp_path: Path) -> None:
    build(name, tmp_path)
    _, files, ids = LAYOUTS[name]
    config = DataConfig(root=tmp_path, dataset=name)
    wanted = np.resize(np.array(list(ids.values()), np.uint8), SIZES.get(name, (40, 48)))
    if config.crop_box is not None:
        left, top, right, bottom = config.crop_box
        wanted = wanted[top:bottom, left:right]
    for split in {part for part, _, _ in files}:
        source = open_source(config, split)
        assert len(source) == sum(1 for part, _, _ in files if part == split)
        assert len(set(source.names)) == len(source)
        image, label = source.read(0)
        assert image.shape == (*wanted.shape, 3)
        np.testing.assert_array_equal(label, wanted)
        np.testing.assert_array_equal(source.read_label(0), wanted)


@pytest.mark.parametrize("name", LAYOUTS)
def test_check_names_the_published_counts_and_nothing_else(name: str, tmp_path: Path) -> None:
    build(name, tmp_path)
    report = check_folder(DataConfig(root=tmp_path, dataset=name))
    assert not report.errors
    short = [fault for fault in report.warnings if "should have" in fault.what]
    assert len(short) == len({part for part, _, _ in LAYOUTS[name][1]})
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
        ("coco_stuff_164k", 171, "person", "wood"),
        ("synapse", 9, "background", "pancreas"),
        ("urbanlf_real", 14, "bike", "sky"),
        ("camvid", 11, "sky", "bicyclist"),
        ("rgbt_glass", 2, "background", "glass"),
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


def test_names_of_foodseg_come_from_its_archive(tmp_path: Path) -> None:
    build("foodseg103", tmp_path)
    config = DataConfig(root=tmp_path, dataset="foodseg103")
    assert open_source(config, "train").classes.names[1] == "class_1"
    listing = tmp_path / "FoodSeg103" / "category_id.txt"
    listing.write_text("0\tbackground\n1\tcandy\n" + "".join(f"{i}\tfood {i}\n" for i in range(2, 104)))
    assert open_source(config, "train").classes.names[:3] == ("background", "candy", "food 2")
    listing.write_text("0 background\n")
    with pytest.raises(DataError, match=r"must name the classes 0\.\.103, one a line, got 1 of them"):
        open_source(config, "train")


def test_shards_hold_what_is_left_of_cut_pictures(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    build("dada_seg", tmp_path / "data")
    config = DataConfig(root=tmp_path / "data", dataset="dada_seg")
    list(write_shards(config, tmp_path / "shards", ["val"], 2**30))
    for one, other in zip(
        open_source(DataConfig(shards=str(tmp_path / "shards")), "val").read(0),
        open_source(config, "val").read(0),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
