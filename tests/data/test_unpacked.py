"""Archives as strangers have them on their disks: clutter, capitals, links, missing lists, the wrong folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.checks.check import check_folder
from setr_fast.data.layouts.known import KNOWN
from setr_fast.data.layouts.scan import samples_of
from setr_fast.data.options import DataConfig
from setr_fast.data.source import open_source
from setr_fast.errors import ConfigError, DataError
from tests.data.test_known import build


def _clutter(root: Path) -> None:
    """What desktops leave in every folder, and a text in a folder of lists."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for file in [path for path in folder.iterdir() if path.suffix in (".jpg", ".png", ".npy")]:
            (folder / f"._{file.name}").write_bytes(b"\0\5\x16\7")
        (folder / ".DS_Store").write_bytes(b"Bud1")
        (folder / "Thumbs.db").write_bytes(b"thumbs")
        (folder / "README.txt").write_text("hello\n")
        if folder != root and not any(part.startswith(".") for part in folder.parts[-2:]):
            (folder / ".ipynb_checkpoints").mkdir(exist_ok=True)
    (root / "__MACOSX").mkdir()


def _capitals_and_links(root: Path, store: Path) -> Path:
    """Pictures with suffixes in capitals, each a link to a store elsewhere, below a root of links."""
    store.mkdir()
    pictures = [path for path in root.rglob("*") if path.suffix in (".jpg", ".png") and path.name[0] != "."]
    for index, path in enumerate(pictures):
        path.rename(store / f"{index}{path.suffix}")
        path.with_suffix(path.suffix.upper()).symlink_to(store / f"{index}{path.suffix}")
    linked = root.with_name("links")
    linked.mkdir()
    for path in root.iterdir():
        (linked / path.name).symlink_to(path)
    return linked


@pytest.mark.parametrize("name", KNOWN)
def test_clutter_capitals_and_links_change_nothing(name: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    build(name, plain)
    config = DataConfig(root=plain, dataset=name)
    splits = [split for split in KNOWN[name].splits if split != "test" or config.val_split == "test"]
    wanted = {split: [sample.name for sample in samples_of(config, split)] for split in splits if split != "trainval"}
    _clutter(plain)
    changed = DataConfig(root=_capitals_and_links(plain, tmp_path / "store"), dataset=name)
    report = check_folder(changed, level="headers")
    assert [fault.line() for fault in report.errors] == []
    assert {facts.name for facts in report.splits} == set(wanted)
    assert {split: [sample.name for sample in samples_of(changed, split)] for split in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "gone", "words"),
    [
        ("pascal_voc", "VOCdevkit/VOC2012/ImageSets/Segmentation", "ImageSets/Segmentation/{train,val}.txt, got Im"),
        (
            "pascal_voc_aug",
            "VOCdevkit/VOC2012/ImageSets/Segmentation",
            "got no list ImageSets/Segmentation/trainaug",
        ),
        ("pascal_context", "VOCdevkit/VOC2010/SegmentationClassContext", "run `setr-fast data prepare pascal_context"),
        ("coco_stuff_10k", "cocostuff-10k-v1.1/imageLists", "got no list imageLists/train.txt"),
        (
            "cityscapes",
            "leftImg8bit",
            "lie as leftImg8bit/{train,val}/CITY + gtFine/{train,val}/CITY, got gtFine;",
        ),
        (
            "synapse",
            "train_npz",
            "of synapse must lie in train_npz/*.npz, got no such pictures; run `setr-fast",
        ),
        ("coco_stuff_164k", "images", "must lie in images/train2017/*.jpg, got no such pictures; check --data.root"),
    ],
)
def test_what_is_missing_is_named(name: str, gone: str, words: str, tmp_path: Path) -> None:
    build(name, tmp_path)
    os.rename(tmp_path / gone, tmp_path / ".gone")
    config = DataConfig(root=tmp_path, dataset=name)
    with pytest.raises(DataError) as caught:
        open_source(config, config.train_split)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    lines = [fault.line() for fault in check_folder(config).errors]
    assert any(words in line for line in lines), lines


def test_masks_of_459_classes_are_told_from_those_of_60(tmp_path: Path) -> None:
    """Sixteen-bit masks with the ids of the Detail API, in the place of the prepared ones."""
    build("pascal_context", tmp_path)
    mask = tmp_path / "VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png"
    Image.fromarray(np.resize(np.array([2, 284, 458], np.uint16), (40, 48))).save(mask)
    with pytest.raises(DataError, match=r"got 284 .*, 458 .*; run `setr-fast data prepare pascal_context /"):
        open_source(DataConfig(root=tmp_path, dataset="pascal_context"), "train").read(0)


def test_a_count_of_classes_that_is_not_the_table_s_is_refused(tmp_path: Path) -> None:
    build("cityscapes", tmp_path)
    with pytest.raises(ConfigError, match=r"num_classes: must agree with .*cityscapes.csv, which has 19 .*, got 34"):
        open_source(DataConfig(root=tmp_path, dataset="cityscapes", num_classes=34), "train")


def test_palette_and_16_bit_masks_hold_the_same_ids(tmp_path: Path) -> None:
    build("ade20k", tmp_path)
    config = DataConfig(root=tmp_path, dataset="ade20k")
    _, before = open_source(config, "training").read(0)
    mask = next(tmp_path.rglob("ADE_train_00000001.png"))
    ids = np.asarray(Image.open(mask))
    Image.fromarray(ids.astype(np.uint16)).save(mask)
    np.testing.assert_array_equal(open_source(config, "training").read(0)[1], before)
    coloured = Image.fromarray(ids)
    coloured.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    coloured.save(mask)
    np.testing.assert_array_equal(open_source(config, "training").read(0)[1], before)
