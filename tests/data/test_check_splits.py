"""`data check`: splits that are missing, unlabelled, or hold nothing to learn from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from setr_fast.data.checks.check import check_command, check_folder, format_report, verify
from setr_fast.data.options import DataConfig
from setr_fast.errors import DataError
from tests.data.handmade import ids, save


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
