"""`data check`: what is planted is found, with file and remedy, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.checks.check import Level, Report, check_command, check_folder, format_report, verify
from setr_fast.data.options import DataConfig
from setr_fast.errors import DataError
from tests.data.handmade import ids, save


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


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


def test_progress_counts_every_pair(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    report: Report = check_folder(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(index, 8) for index in range(1, 9)]
    assert report.strays == []
