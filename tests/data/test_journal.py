"""A check that is kept: broken off, gone on with, and never believed where a file has changed."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.checks import journal
from setr_fast.data.checks.check import check_folder
from setr_fast.data.checks.inspection import Inspection, Inspector
from setr_fast.data.layouts.folder import Sample
from setr_fast.data.options import DataConfig

COUNT = 12


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A data folder whose checks are kept."""
    monkeypatch.setenv("SETR_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(journal, "KEPT_FROM", 1)
    for split in ("train", "val"):
        for number in range(COUNT):
            for place, array in (("images", np.zeros((4, 6, 3))), ("masks", np.arange(24).reshape(4, 6) % 2)):
                path = tmp_path / "data" / split / place / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    return DataConfig(root=tmp_path / "data", num_classes=2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the samples that were really read."""
    names: list[str] = []
    inspect = Inspector.inspect

    def noted(self: Inspector, sample: Sample) -> Inspection:
        names.append(f"{sample.image.parent.parent.name}/{sample.name}")
        return inspect(self, sample)

    monkeypatch.setattr(Inspector, "inspect", noted)
    return names


def test_what_was_found_is_not_looked_for_again(folder: DataConfig, read: list[str]) -> None:
    first = check_folder(folder)
    assert len(read) == 2 * COUNT
    read.clear()
    second = check_folder(folder)
    assert read == []
    assert [facts.class_pixels for facts in second.splits] == [facts.class_pixels for facts in first.splits]
    assert second.splits[0].largest == (4, 6)


def test_broken_off_check_goes_on(folder: DataConfig, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal, "_COMMIT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        check_folder(folder, progress=interrupt)
    read.clear()
    report = check_folder(folder)
    assert len(read) == 2 * COUNT - 7
    assert not report.errors
    assert [facts.pairs for facts in report.splits] == [COUNT, COUNT]


def test_changed_file_is_read_again_and_its_fault_found(folder: DataConfig, read: list[str]) -> None:
    check_folder(folder)
    read.clear()
    assert folder.root is not None
    mask = folder.root / "val/masks/3.png"
    before = mask.stat()
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(mask)
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    report = check_folder(folder)
    assert read == ["val/3"]
    assert [fault.path for fault in report.errors] == [mask]
    mask.unlink()
    assert [fault.path.name for fault in check_folder(folder).errors] == ["3.png"]


def test_other_rules_have_a_journal_of_their_own(folder: DataConfig, read: list[str]) -> None:
    check_folder(folder)
    read.clear()
    assert folder.root is not None
    report = check_folder(DataConfig(root=folder.root, num_classes=2, crop_box=(0, 0, 7, 4)))
    assert len(read) == 2 * COUNT
    assert len(report.errors) == 4 * COUNT, "the box reaches beyond every picture and mask"


def test_damaged_or_locked_journal_is_no_obstacle(folder: DataConfig, tmp_path: Path, read: list[str]) -> None:
    check_folder(folder)
    (base,) = (tmp_path / "cache/check").glob("*.sqlite")
    base.write_bytes(b"not a database" * 100)
    assert not check_folder(folder).errors
    holder = sqlite3.connect(base)
    holder.execute("BEGIN IMMEDIATE")
    read.clear()
    assert not check_folder(folder).errors
    assert len(read) == 2 * COUNT
    holder.rollback()
    holder.close()


def test_names_that_are_no_utf8_are_kept_too(folder: DataConfig, read: list[str]) -> None:
    assert folder.root is not None
    for place in ("images", "masks"):
        one = folder.root / "val" / place / "3.png"
        os.rename(one, os.fsencode(one.parent) + b"/\xff\xfe.png")
    check_folder(folder)
    read.clear()
    assert not check_folder(folder).errors
    assert read == []


def test_findings_survive_the_way_through_text(tmp_path: Path) -> None:
    sample = Sample("a", tmp_path / "a.png", tmp_path / "b.png")
    broken = Inspector(DataConfig(root=tmp_path), "full").inspect(sample)
    assert len(broken.faults) == 2
    assert Inspection.from_text(sample, broken.to_text()) == broken
    whole = Inspection(sample, [], (3, 4), {0: 5, 255: 7}, {0: (1, 2, 3)})
    assert Inspection.from_text(sample, whole.to_text()) == whole


def test_processes_find_what_threads_find(folder: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.root is not None
    (folder.root / "val/images/5.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    threads = check_folder(folder)
    monkeypatch.setattr(journal, "PROCESSES_FROM", 1)
    monkeypatch.setattr(journal, "KEPT_FROM", 10**6)
    processes = check_folder(folder)
    assert processes.faults == threads.faults
    assert [facts.class_pixels for facts in processes.splits] == [facts.class_pixels for facts in threads.splits]
