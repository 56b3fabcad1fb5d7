"""From a data folder to arrays: ids, colours, sizes, and where the classes come from."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.classes import ClassTable
from setr_fast.data.masks import MaskReader, histogram, read_colour_mask
from setr_fast.data.options import DataConfig
from setr_fast.data.source import FolderSource, open_source
from setr_fast.errors import ConfigError, DataError

TABLE = "id,name,r,g,b,ignore\n0,sky,10,20,30,0\n1,road,40,50,60,0\n2,void,0,0,0,1\n"


def add(root: Path, stem: str, ids: np.ndarray, split: str = "train") -> None:
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    height, width = ids.shape[:2]
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / split / "images" / f"{stem}.png")
    Image.fromarray(ids).save(root / split / "masks" / f"{stem}.png")


def ids(*values: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array([values], dtype)


def test_reads_picture_and_training_ids(tmp_path: Path) -> None:
    add(tmp_path, "b", ids(0, 1, 2, 255))
    add(tmp_path, "a", ids(1, 1))
    (tmp_path / "classes.csv").write_text(TABLE)
    source = open_source(DataConfig(root=tmp_path), "train")
    assert isinstance(source, FolderSource)
    assert list(source.names) == ["a", "b"]
    assert len(source) == 2
    assert source.classes.names == ("sky", "road")
    image, label = source.read(1)
    assert image.shape == (1, 4, 3)
    assert label.tolist() == [[0, 1, 255, 255]]
    assert label.dtype == image.dtype == np.uint8
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.read(1)[1], label)


def test_offset_and_ignore_index(tmp_path: Path) -> None:
    add(tmp_path, "a", ids(0, 1, 2, 3, 255))
    read = FolderSource(DataConfig(root=tmp_path, num_classes=3, label_offset=-1, ignore_index=2), "train").read(0)[1]
    assert read.tolist() == [[255, 0, 255, 2, 255]]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (ids(0, 1, 2), "ids must be 0..1, or ignored (255), got 2 (1 pixels)"),
        (ids(0, 1, 11007, dtype=np.uint16), "11007 (1 pixels); convert instance ids"),
        (ids(*range(40)), "and 33 more, the largest 39; export the mask again without smoothing"),
        (ids(1, 2, 2), "got 2 (2 pixels); correct the mask, or set --data.label-offset -1"),
        (ids(0, 65535, dtype=np.uint16), "65535"),
    ],
)
def test_illegal_ids_name_the_file_and_the_ids(tmp_path: Path, mask: np.ndarray, words: str) -> None:
    add(tmp_path, "a", mask)
    with pytest.raises(DataError) as caught:
        FolderSource(DataConfig(root=tmp_path, num_classes=2), "train").read(0)
    assert str(tmp_path / "train/masks/a.png") in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_beyond_sixteen_bits_are_illegal_not_wrapped(tmp_path: Path) -> None:
    Image.fromarray(ids(0, 65536, -1, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"got -1 \(1 pixels\), 65536 \(1 pixels\)"):
        MaskReader(ClassTable.numbered(2)).read(tmp_path / "a.tif")
    for value in (65536, 65537, -65535):
        Image.fromarray(ids(0, value, dtype=np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=str(value)):
            MaskReader(ClassTable.numbered(2)).read(tmp_path / "a.tif")
    Image.fromarray(ids(0, 1, 255, dtype=np.int32)).save(tmp_path / "b.tif")
    assert MaskReader(ClassTable.numbered(2)).read(tmp_path / "b.tif").tolist() == [[0, 1, 255]]


def test_picture_and_mask_of_different_size_are_never_resized(tmp_path: Path) -> None:
    add(tmp_path, "a", np.zeros((3, 4), np.uint8))
    Image.fromarray(np.zeros((4, 3), np.uint8)).save(tmp_path / "train/masks/a.png")
    with pytest.raises(DataError) as caught:
        FolderSource(DataConfig(root=tmp_path, num_classes=2), "train").read(0)
    for words in ("images/a.png", "masks/a.png", "4 x 3 seen upright", "got 3 x 4"):
        assert words in str(caught.value)


# ---- where the classes come from ------------------------------------------------------------------------------------


def test_classes_are_counted_from_the_training_masks_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, "a", ids(0, 2, 255))
    add(tmp_path, "b", ids(0, 4))
    add(tmp_path, "c", ids(0, 1), split="val")
    with caplog.at_level(logging.INFO, "setr_fast"):
        source = open_source(DataConfig(root=tmp_path), "val")
    assert source.classes == ClassTable.numbered(5)
    assert "5 classes (ids 0..4) counted from the masks of split 'train'" in caplog.text
    assert FolderSource(DataConfig(root=tmp_path, label_offset=-1), "train").classes.num_classes == 4
    assert FolderSource(DataConfig(root=tmp_path, ignore_index=4), "train").classes.num_classes == 3


def test_masks_of_zero_and_255_are_not_counted_as_one_class(tmp_path: Path) -> None:
    add(tmp_path, "a", ids(0, 255))
    with pytest.raises(DataError, match="with the lines 0,background and 255,object, or store 0 and 1"):
        open_source(DataConfig(root=tmp_path), "train")


def test_masks_of_zero_and_255_have_two_classes_by_a_class_table(tmp_path: Path) -> None:
    add(tmp_path, "a", ids(0, 255, 255))
    (tmp_path / "classes.csv").write_text("id,name\n0,background\n255,object\n")
    source = open_source(DataConfig(root=tmp_path), "train")
    assert source.classes.names == ("background", "object")
    assert source.read(0)[1].tolist() == [[0, 1, 1]]


def test_known_classes_are_taken_and_no_mask_is_read_to_count_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "a", ids(0, 1, 2))
    config, known = DataConfig(root=tmp_path), ClassTable.numbered(4)
    monkeypatch.setattr("setr_fast.data.source.count_classes", None)
    monkeypatch.setattr("setr_fast.data.source.stored_mask", None)
    assert open_source(config, "train", known).classes is known
    source = FolderSource(config, "train", classes=known)
    assert source.classes is known
    assert source.read(0)[1].tolist() == [[0, 1, 2]]
    scenes = DataConfig(builtin_train=1, builtin_size=32)
    assert open_source(scenes, "train", None).classes == open_source(scenes, "train").classes


def test_ids_too_large_to_count_name_their_mask(tmp_path: Path) -> None:
    add(tmp_path, "a", ids(0, 1))
    add(tmp_path, "b", ids(0, 7012, dtype=np.uint16))
    with pytest.raises(DataError, match=r"masks/b.png: ids must be below 254 .* got 7012"):
        open_source(DataConfig(root=tmp_path), "train")


def test_a_class_table_wins_and_num_classes_must_agree(tmp_path: Path) -> None:
    add(tmp_path, "a", ids(0, 1))
    (tmp_path / "classes.csv").write_text(TABLE)
    assert FolderSource(DataConfig(root=tmp_path, num_classes=2), "train").classes.names == ("sky", "road")
    with pytest.raises(ConfigError, match="has 2 classes, got 3"):
        FolderSource(DataConfig(root=tmp_path, num_classes=3), "train")
    (tmp_path / "other.json").write_text('["x", "y", "z"]')
    named = FolderSource(DataConfig(root=tmp_path, classes=tmp_path / "other.json"), "train")
    assert named.classes.names == ("x", "y", "z")


def test_built_in_scenes_stand_in_for_a_folder() -> None:
    config = DataConfig(builtin_train=3, builtin_val=2, builtin_size=32)
    train, val = open_source(config, "train"), open_source(config, "val")
    assert (len(train), len(val)) == (3, 2)
    assert train.classes == val.classes
    image, label = train.read(0)
    assert image.shape == (32, 32, 3)
    assert label.shape == (32, 32)
    with pytest.raises(ConfigError, match="train or val, got 'test'"):
        open_source(config, "test")


# ---- colours --------------------------------------------------------------------------------------------------------

COLOURS = np.array([[[10, 20, 30], [40, 50, 60], [0, 0, 0]]], np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_ids(tmp_path: Path, mode: str) -> None:
    add(tmp_path, "a", ids(0, 0, 0))
    (tmp_path / "classes.csv").write_text(TABLE)
    image = Image.fromarray(COLOURS)
    (image.quantize(3) if mode == "P" else image.convert(mode)).save(tmp_path / "train/masks/a.png")
    source = FolderSource(DataConfig(root=tmp_path, mask_colours="rgb"), "train")
    assert source.read(0)[1].tolist() == [[0, 1, 255]]


def test_unknown_colours_are_counted_and_the_commonest_named(tmp_path: Path) -> None:
    table = ClassTable(("a", "b"), ((1, 1, 1), (2, 2, 2)), (0, 1), coloured=True)
    pixels = np.full((4, 5, 3), 1, np.uint8)
    pixels[0, :4] = 200
    pixels[1, :3] = (0, 255, 3)
    pixels[2, :2] = 7
    pixels[3, :1] = 8
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        read_colour_mask(tmp_path / "a.png", table)
    wanted = "got 4 others in 10 pixels, most often (200, 200, 200), (0, 255, 3), (7, 7, 7);"
    assert wanted in str(caught.value)


def test_colour_masks_need_colours_that_tell_classes_apart(tmp_path: Path) -> None:
    add(tmp_path, "a", COLOURS)
    config = DataConfig(root=tmp_path, mask_colours="rgb")
    with pytest.raises(DataError, match="class table with colours must be given"):
        FolderSource(config, "train")
    (tmp_path / "classes.csv").write_text("id,name\n0,a\n1,b\n")
    with pytest.raises(DataError, match=r"classes.csv: colours r, g, b must be given"):
        FolderSource(config, "train")
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n0,a,1,1,1\n1,b,1,1,1\n")
    with pytest.raises(DataError, match=r"classes.csv: colours must differ"):
        FolderSource(config, "train")


def test_transparent_or_lossy_colour_masks_are_refused(tmp_path: Path) -> None:
    table = ClassTable(("a", "b"), ((1, 1, 1), (2, 2, 2)), (0, 1), coloured=True)
    Image.new("RGBA", (2, 2), (1, 1, 1, 128)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="opaque"):
        read_colour_mask(tmp_path / "a.png", table)
    Image.new("RGB", (2, 2), (1, 1, 1)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="without loss"):
        read_colour_mask(tmp_path / "a.jpg", table)


def test_histogram_counts_every_id() -> None:
    assert histogram(ids(3, 3, 0)) == {0: 1, 3: 2}
    assert histogram(ids(300, 3, 300, dtype=np.uint16)) == {3: 1, 300: 2}
    assert histogram(ids(-5, 70000, -5, dtype=np.int32)) == {-5: 2, 70000: 1}
