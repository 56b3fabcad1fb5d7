"""`data check`: what is planted is found, with file and remedy, and nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.check import Level, Report, check_command, check_folder, format_report, verify
from setr_fast.data.options import DataConfig
from setr_fast.data.source import open_source
from setr_fast.errors import DataError

TABLE = "id,name,r,g,b,ignore\n0,sky,10,20,30,0\n1,road,40,50,60,0\n2,car,70,80,90,0\n3,void,0,0,0,1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clean data folder: two splits of four pairs that use every class."""
    (tmp_path / "classes.csv").write_text(TABLE)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / split / folder).mkdir(parents=True)
        for stem in "abcd":
            ids = rng.integers(0, 4, (12, 20), dtype=np.uint8)
            image = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{stem}.jpg")
            Image.fromarray(ids).save(tmp_path / split / "masks" / f"{stem}.png")
    return tmp_path


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def ids(*values: int, dtype: type = np.uint8) -> np.ndarray:
    return np.resize(np.array(values, dtype), (12, 20))


def test_a_clean_folder_has_no_faults_and_its_facts_are_right(root: Path) -> None:
    report = check_folder(root)
    assert report.faults == []
    assert [(facts.name, facts.pairs) for facts in report.splits] == [("train", 4), ("val", 4)]
    masks = [np.asarray(Image.open(root / "train/masks" / f"{stem}.png")) for stem in "abcd"]
    counts = np.bincount(np.concatenate(masks).ravel(), minlength=4)
    train = report.splits[0]
    assert train.class_pixels == counts[:3].tolist()
    assert train.ignored_share == pytest.approx(counts[3] / counts.sum())
    assert train.share_255 == 0
    assert train.smallest == train.largest == (12, 20)
    text = format_report(report)
    assert "train: 4 pairs, 20 x 12 pixels" in text
    assert text.endswith("no faults found")
    verify(DataConfig(root=root))
    assert verify(DataConfig()) is None


PLANTED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # name: (what to do to the split's folder, file that is named, words of the line)
    "cut picture": (lambda split: cut(split / "images/b.jpg"), "images/b.jpg", "must be complete"),
    "cut mask": (lambda split: cut(split / "masks/b.png"), "masks/b.png", "must be a complete PNG"),
    "empty mask": (lambda split: (split / "masks/c.png").write_bytes(b""), "masks/c.png", "0 bytes"),
    "no mask": (lambda split: (split / "masks/c.png").unlink(), "images/c.jpg", "must have a mask 'c.png'"),
    "no picture": (lambda split: (split / "images/c.jpg").unlink(), "masks/c.png", "must have a picture"),
    "two pictures": (
        lambda split: (split / "images/c.png").write_bytes((split / "images/c.jpg").read_bytes()),
        "images/c.jpg",
        "got c.jpg and c.png",
    ),
    "wrong size": (lambda split: save(split / "masks/d.png", ids(0)[:, :19]), "masks/d.png", "got 19 x 12"),
    "illegal id": (lambda split: save(split / "masks/d.png", ids(0, 1, 2, 9)), "masks/d.png", "got 9 (60 pixels)"),
    "one pixel": (lambda split: save(split / "masks/d.png", one_pixel(4)), "masks/d.png", "got 4 (1 pixels)"),
    "instance ids": (
        lambda split: save(split / "masks/d.png", ids(0, 2001, dtype=np.uint16)),
        "masks/d.png",
        "convert instance ids",
    ),
    "colours": (
        lambda split: save(split / "masks/d.png", np.zeros((12, 20, 3), np.uint8)),
        "masks/d.png",
        "--data.mask-colours rgb",
    ),
    "lossy mask": (
        lambda split: save((split / "masks/d.png").rename(split / "masks/d.jpg"), ids(0, 1)),
        "masks/d.jpg",
        "without loss",
    ),
    "lfs pointer": (
        lambda split: (split / "images/a.jpg").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "images/a.jpg",
        "git lfs pull",
    ),
}


def one_pixel(value: int) -> np.ndarray:
    mask = ids(0, 1, 2)
    mask[5, 7] = value
    return mask


@pytest.mark.parametrize("kind", PLANTED)
def test_one_planted_fault_is_found_with_file_and_remedy(root: Path, kind: str) -> None:
    plant, file, words = PLANTED[kind]
    plant(root / "val")
    report = check_folder(root)
    assert len(report.faults) == 1, format_report(report)
    fault = report.faults[0]
    assert fault.severity == "error"
    assert fault.path == root / "val" / file
    assert words in fault.line()
    assert fault.remedy
    assert "\n" not in fault.line()
    assert f"error: {fault.line()}" in format_report(report)
    assert format_report(report).endswith("1 error, 0 warnings")
    assert check_folder(root).faults == report.faults


def test_many_faults_come_in_a_fixed_order(root: Path) -> None:
    for kind in ("cut picture", "no mask", "illegal id", "lfs pointer"):
        PLANTED[kind][0](root / "val")
        PLANTED[kind][0](root / "train")
    first = check_folder(root)
    assert len(first.errors) == 8
    assert all(check_folder(root).faults == first.faults for _ in range(3))
    assert format_report(first, most=3).splitlines()[-2] == "... and 5 more"


def test_training_is_told_the_first_fault_in_one_line(root: Path) -> None:
    PLANTED["illegal id"][0](root / "train")
    PLANTED["cut picture"][0](root / "val")
    with pytest.raises(DataError) as caught:
        verify(DataConfig(root=root))
    message = str(caught.value)
    assert "\n" not in message
    assert "train/masks/d.png: ids must be 0..2, or ignored (3, 255), got 9" in message
    assert f"(1 more fault: run `setr-fast data check {root}`)" in message
    assert verify(DataConfig(root=root, check="off")) is None
    assert verify(DataConfig(root=root), splits=["val"], level="off") is None
    with pytest.raises(DataError, match=r"val/images/b.jpg"):
        verify(DataConfig(root=root), splits=["val"])


def test_headers_find_wrong_sizes_and_types_without_decoding(root: Path) -> None:
    for kind in ("wrong size", "no mask", "cut mask"):
        PLANTED[kind][0](root / "val")
    PLANTED["colours"][0](root / "train")
    PLANTED["illegal id"][0](root / "val")  # replaces the mask of wrong size; ids are not looked at
    report = check_folder(root, level="headers")
    found = {fault.path.relative_to(root).as_posix() for fault in report.faults}
    assert found == {"val/images/c.jpg", "val/masks/b.png", "train/masks/d.png"}


def test_a_mask_without_picture_does_not_stop_training(root: Path) -> None:
    save(root / "train/masks/extra.png", ids(0))
    assert [fault.path.name for fault in check_folder(root).errors] == ["extra.png"]
    verify(DataConfig(root=root))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (ids(0, 255), "0 and 255 alone"),
        (ids(255), "ignored ones only"),
        (ids(3), "ignored ones only"),
    ],
)
def test_odd_masks_are_warned_of(root: Path, mask: np.ndarray, words: str) -> None:
    save(root / "train/masks/d.png", mask)
    report = check_folder(root)
    assert report.errors == []
    assert [fault.path for fault in report.warnings] == [root / "train/masks/d.png"]
    assert words in report.warnings[0].line()
    assert check_command(DataConfig(root=root)) == 0
    verify(DataConfig(root=root))


def test_warnings_of_one_kind_are_gathered(root: Path) -> None:
    for stem in "abc":
        save(root / f"val/masks/{stem}.png", ids(3))
    report = check_folder(root)
    assert len(report.warnings) == 1
    assert "(and so do 2 more masks of 'val')" in report.warnings[0].line()


def test_much_255_and_absent_classes_are_warned_of(root: Path) -> None:
    for stem in "abcd":
        save(root / f"train/masks/{stem}.png", ids(0, 1, 255))
    lines = [fault.line() for fault in check_folder(root).warnings]
    assert len(lines) == 2
    assert "got the id 255 in 33% of them" in lines[0]
    assert "got no pixel of car" in lines[1]


def binary(root: Path) -> None:
    """Make all masks of a data folder ones of 0 and 255, mostly 255."""
    for mask in root.glob("*/masks/*.png"):
        save(mask, ids(0, 255, 255))


def test_masks_of_0_and_255_are_named_with_the_table_that_reads_them(root: Path) -> None:
    binary(root)
    (root / "classes.csv").unlink()
    table = "with the lines 0,background and 255,object, or store 0 and 1"
    report = check_folder(root)
    assert len(report.errors) == 1
    assert report.errors[0].remedy.endswith(table)
    assert "ignored" not in format_report(report).splitlines()[1], "nothing was counted"
    assert "255" not in format_report(report).splitlines()[1]
    lines = [fault.line() for fault in check_folder(DataConfig(root=root, num_classes=2)).warnings]
    assert any("0 and 255 alone" in line and line.endswith(table) for line in lines)
    assert any("got the id 255 in 67% of them" in line for line in lines)


def test_masks_of_0_and_255_are_clean_once_255_is_a_class(root: Path) -> None:
    binary(root)
    (root / "classes.csv").write_text("id,name\n0,background\n255,object\n")
    report = check_folder(root)
    assert report.faults == [], format_report(report)
    assert report.splits[0].class_pixels == [320, 640]
    assert report.splits[0].ignored_share == 0
    assert "background 33.3%, object 66.7%" in format_report(report)
    assert len(check_folder(DataConfig(root=root, ignore_index=255)).warnings) > 0


def test_a_palette_that_disagrees_with_the_class_table_is_warned_of(root: Path) -> None:
    def paletted(colours: list[int]) -> None:
        image = Image.fromarray(ids(0, 1, 2))
        image.putpalette(colours)
        image.save(root / "train/masks/a.png")

    paletted([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert check_folder(root).faults == []
    paletted([1, 2, 3, 4, 5, 6, 7, 8, 9])  # other colours altogether say nothing
    assert check_folder(root).faults == []
    paletted([40, 50, 60, 10, 20, 30, 70, 80, 90])
    assert [fault.path.name for fault in check_folder(root).warnings] == ["a.png"]


def test_classes_are_counted_where_nothing_states_them(root: Path) -> None:
    (root / "classes.csv").unlink()
    report = check_folder(root)
    assert report.classes is not None
    assert report.classes.num_classes == 4
    assert report.faults == []
    save(root / "train/masks/c.png", ids(0, 1, 2, 9))
    report = check_folder(root)
    assert report.errors == []
    assert "largest id, which is in " in report.warnings[0].what
    assert "train/masks/c.png" in report.warnings[0].what


def test_what_verify_counted_is_not_counted_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "classes.csv").unlink()
    config = DataConfig(root=root)
    report = verify(config)
    assert report is not None
    assert report.classes is not None
    monkeypatch.setattr("setr_fast.data.source.count_classes", None)
    for split in ("train", "val"):
        assert open_source(config, split, report.classes).classes.num_classes == 4
    headers = verify(config, level="headers")
    assert headers is not None
    assert headers.classes is None


def test_classes_are_those_of_the_training_split_whichever_split_is_checked(root: Path) -> None:
    (root / "classes.csv").unlink()
    for stem in "abcd":
        save(root / f"val/masks/{stem}.png", ids(0, 1))
    config = DataConfig(root=root)
    report = verify(config, splits=["val"])
    assert report is not None
    assert report.classes == open_source(config, "val").classes
    assert report.classes is not None
    assert report.classes.num_classes == 4


@pytest.mark.parametrize("level", ["full", "headers"])
def test_the_largest_picture_is_known(root: Path, level: Level) -> None:
    save(root / "val/images/b.jpg", np.zeros((30, 50, 3), np.uint8))
    save(root / "val/masks/b.png", np.resize(np.arange(4, dtype=np.uint8), (30, 50)))
    report = verify(DataConfig(root=root), level=level)
    assert report is not None
    assert [facts.largest for facts in report.splits] == [(12, 20), (30, 50)]
    assert report.splits[1].smallest == (12, 20)


def test_a_bad_class_table_is_a_fault_beside_the_others(root: Path) -> None:
    (root / "classes.csv").write_text("id,name\n0,a\n2,b\n")
    PLANTED["cut picture"][0](root / "val")
    assert [fault.path.name for fault in check_folder(root).errors] == ["classes.csv", "b.jpg"]
    with pytest.raises(DataError, match=r"classes.csv: ids must have no gap"):
        verify(DataConfig(root=root))


def test_colour_masks_are_checked_by_their_colours(root: Path) -> None:
    palette = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [0, 0, 0]], np.uint8)
    for mask in sorted(root.glob("*/masks/*.png")):
        save(mask, palette[np.asarray(Image.open(mask))])
    config = DataConfig(root=root, mask_colours="rgb")
    assert check_folder(config).faults == []
    assert len(check_folder(root).errors) == 8
    save(root / "val/masks/a.png", np.full((12, 20, 3), 5, np.uint8))
    assert "most often (5, 5, 5)" in check_folder(config).errors[0].line()


def test_a_split_without_masks_is_only_mentioned_unless_it_is_trained_on(root: Path) -> None:
    (root / "test/images").mkdir(parents=True)
    report = check_folder(root)
    assert report.errors == []
    assert "got test/images alone" in report.warnings[0].line()
    assert len(check_folder(root, splits=["test"]).errors) == 1


def test_pictures_to_predict_only_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "images/test").mkdir(parents=True)
    save(tmp_path / "images/test/a.png", np.zeros((4, 4, 3), np.uint8))
    assert [fault.severity for fault in check_folder(tmp_path).faults] == ["warning"]


@pytest.mark.parametrize(
    ("old", "new", "remedy"),
    [
        ("val", "validation", "name a split that exists: --data.val-split validation"),
        ("train", "training", "name a split that exists: --data.train-split training"),
        ("val", "test", "add it, or name a split that exists (train, test): --data.val-split test"),
        ("val", "the night", "add it, or name a split that exists (train, the night): --data.val-split 'the night'"),
        ("val", None, "add it, or name a split that exists (train): --data.val-split train"),
    ],
)
def test_a_split_that_training_would_miss_is_a_fault_that_names_the_flag(
    root: Path, old: str, new: str | None, remedy: str
) -> None:
    if new is None:
        shutil.rmtree(root / old)
    else:
        (root / old).rename(root / new)
    report = check_folder(root)
    assert [fault.remedy for fault in report.errors] == [remedy]
    assert f"split '{old}' must lie in {old}/images" in report.errors[0].what
    assert {facts.name for facts in report.splits} == {"train", "val"} - {old} | ({new} if new is not None else set())
    assert check_command(DataConfig(root=root)) == 3
    with pytest.raises(DataError) as caught:
        verify(DataConfig(root=root))
    assert str(caught.value) == report.errors[0].line()
    if new is not None:
        config = DataConfig(root=root, **{f"{old}_split": new})
        assert check_folder(config).errors == []
        verify(config)


def test_a_split_that_only_a_list_makes_is_found_when_it_is_asked_for(root: Path) -> None:
    (root / "train").rename(root / "images-and-masks")
    for folder in ("images", "masks"):
        (root / "images-and-masks" / folder).rename(root / folder)
    shutil.rmtree(root / "val")
    (root / "monday.txt").write_text("a\nb\n")
    (root / "tuesday.txt").write_text("c\n")
    config = DataConfig(root=root, train_split="monday", val_split="tuesday")
    assert [(facts.name, facts.pairs) for facts in check_folder(config).splits] == [("monday", 2), ("tuesday", 1)]


@pytest.mark.parametrize(("split", "purpose"), [("val", "score"), ("train", "learn from")])
def test_a_split_with_ignored_pixels_only_is_an_error(root: Path, split: str, purpose: str) -> None:
    for stem, mask in zip("abcd", (ids(3), ids(255), ids(3, 255), ids(3)), strict=True):
        save(root / f"{split}/masks/{stem}.png", mask)
    report = check_folder(root)
    assert len(report.faults) == 1, format_report(report)
    assert f"nothing to {purpose} in split {split}" in report.errors[0].line()
    assert check_command(DataConfig(root=root)) == 3
    with pytest.raises(DataError, match=f"nothing to {purpose} in split {split}"):
        verify(DataConfig(root=root))
    mask = ids(3).copy()
    mask[0, 0] = 1
    save(root / f"{split}/masks/c.png", mask)
    assert check_folder(root).errors == []


def test_a_test_split_with_ignored_pixels_only_is_a_warning(root: Path) -> None:
    shutil.copytree(root / "val", root / "test")
    for stem in "abcd":
        save(root / f"test/masks/{stem}.png", ids(255))
    report = check_folder(root)
    assert report.errors == []
    assert any("got ignored ones only" in fault.line() for fault in report.warnings)


def test_a_folder_without_splits_is_an_error_that_shows_what_was_looked_for(tmp_path: Path) -> None:
    report = check_folder(tmp_path)
    assert "train/images + train/masks or images/train + labels/train" in report.errors[0].line()
    assert "got no folders" in report.errors[0].line()
    assert check_command(DataConfig(root=tmp_path)) == 3
    assert [fault.what for fault in check_folder(tmp_path / "none").errors] == [
        "data.root must be a folder, got no such folder"
    ]
    with pytest.raises(DataError, match=r"got no such folder; check --data.root$"):
        verify(DataConfig(root=tmp_path / "none"))


def test_progress_counts_every_pair(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    report: Report = check_folder(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(index, 8) for index in range(1, 9)]
    assert report.strays == []
