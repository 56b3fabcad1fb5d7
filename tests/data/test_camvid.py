"""A real data set: 468 pairs of street scenes, ids 0..10 and 11 for void, 4-bit palette masks, split lists."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from setr_fast.data.checks.check import check_folder, format_report
from setr_fast.data.options import DataConfig
from setr_fast.data.source import open_source


@pytest.fixture(scope="module")
def camvid(shared: Path) -> Path:
    return shared / "data" / "camvid"


def test_a_clean_data_set_has_no_faults(camvid: Path) -> None:
    report = check_folder(camvid)
    assert report.faults == [], format_report(report)
    train, val = report.splits
    assert (train.name, train.pairs, val.name, val.pairs) == ("train", 367, "val", 101)
    assert train.listing is not None
    assert train.listing.name == "train.txt"
    assert report.classes is not None
    assert report.classes.names[0] == "sky"
    assert report.classes.num_classes == 11
    # The data set's own table of shares, which counts void pixels too.
    for facts, void, sky, road in ((train, 0.0395, 0.1685, 0.3166), (val, 0.0170, 0.0918, 0.2895)):
        assert facts.ignored_share == pytest.approx(void, abs=1e-4)
        assert facts.share_255 == 0
        pixels = sum(facts.class_pixels) / (1 - facts.ignored_share)
        assert facts.class_pixels[0] / pixels == pytest.approx(sky, abs=1e-4)
        assert facts.class_pixels[3] / pixels == pytest.approx(road, abs=1e-4)
        assert facts.smallest == facts.largest == (360, 480)


def test_samples_come_in_the_order_of_the_list_with_void_ignored(camvid: Path) -> None:
    source = open_source(DataConfig(root=camvid), "val")
    stems = (camvid / "val.txt").read_text().split()
    assert list(source.names) == stems
    image, label = source.read(0)
    assert image.shape == (360, 480, 3)
    assert label.shape == (360, 480)
    assert set(np.unique(label)) <= {*range(11), 255}
    assert 255 in label


def test_faults_planted_in_a_copy_are_found(camvid: Path, tmp_path: Path) -> None:
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        (tmp_path / kind / "val").mkdir(parents=True)
        for stem in (camvid / "val.txt").read_text().split()[:6]:
            shutil.copyfile(camvid / kind / "val" / f"{stem}.{suffix}", tmp_path / kind / "val" / f"{stem}.{suffix}")
    for name in ("classes.csv", "val.txt"):
        shutil.copyfile(camvid / name, tmp_path / name)
    stems = (tmp_path / "val.txt").read_text().split()
    missing = check_folder(tmp_path, ["val"]).errors
    assert len(missing) == len(stems) - 6
    assert f"got '{stems[6]}' without files" in missing[0].line()
    (tmp_path / "val.txt").write_text("\n".join(stems[:6]))
    assert check_folder(tmp_path, ["val"]).errors == []

    picture = tmp_path / "images/val" / f"{stems[1]}.jpg"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    (tmp_path / "labels/val" / f"{stems[4]}.png").unlink()
    shutil.copyfile(tmp_path / "labels/val" / f"{stems[0]}.png", tmp_path / "labels/val/orphan.png")
    found = {fault.path.name for fault in check_folder(tmp_path, ["val"]).errors}
    assert found == {picture.name, f"{stems[4]}.jpg", "orphan.png"}
