"""`data check`: what the ids and colours in the masks say about the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.checks.check import check_folder, format_report, verify
from setr_fast.data.options import DataConfig
from setr_fast.data.source import open_source
from tests.data.handmade import ids, save


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


def test_colour_masks_are_checked_by_their_colours(root: Path) -> None:
    palette = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [0, 0, 0]], np.uint8)
    for mask in sorted(root.glob("*/masks/*.png")):
        save(mask, palette[np.asarray(Image.open(mask))])
    config = DataConfig(root=root, mask_colours="rgb")
    assert check_folder(config).faults == []
    assert len(check_folder(root).errors) == 8
    save(root / "val/masks/a.png", np.full((12, 20, 3), 5, np.uint8))
    assert "most often (5, 5, 5)" in check_folder(config).errors[0].line()
