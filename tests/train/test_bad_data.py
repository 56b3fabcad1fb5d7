"""Broken data stops a run before its first step, in one line, with exit code 3, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.cli import main


def _pair(root: Path, split: str, stem: str, ids: int = 3) -> None:
    rng = np.random.default_rng(len(stem))
    for kind, array in (
        ("images", rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)),
        ("masks", rng.integers(0, ids, (40, 48), dtype=np.uint8)),
    ):
        folder = root / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{stem}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for stem in ("a", "bb", "ccc"):
            _pair(tmp_path / "data", split, stem)
    (tmp_path / "data" / "classes.csv").write_text("id,name,r,g,b\n0,sky,1,2,3\n1,road,4,5,6\n2,tree,7,8,9\n")
    return tmp_path / "data"


def _cut_off(root: Path) -> str:
    path = root / "train" / "images" / "bb.png"
    path.write_bytes(path.read_bytes()[:-500])
    return "bb.png"


def _no_mask(root: Path) -> str:
    (root / "val" / "masks" / "ccc.png").unlink()
    return "ccc"


def _id_out_of_range(root: Path) -> str:
    path = root / "train" / "masks" / "a.png"
    mask = np.array(Image.open(path))
    mask[5, 7] = 200
    Image.fromarray(mask).save(path)
    return "a.png"


def _colours(root: Path) -> str:
    Image.new("RGB", (48, 40), (1, 2, 3)).save(root / "val" / "masks" / "a.png")
    return "a.png"


def _other_size(root: Path) -> str:
    Image.new("L", (47, 40)).save(root / "train" / "masks" / "ccc.png")
    return "ccc.png"


def _no_split(root: Path) -> str:
    (root / "val").rename(root / "somewhere")
    return "val"


FAULTS = [_cut_off, _no_mask, _id_out_of_range, _colours, _other_size, _no_split]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda f: f.__name__.strip("_"))
def test_a_fault_stops_training_before_the_first_step(
    root: Path, tmp_path: Path, plant: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = plant(root)
    run_dir = tmp_path / "run"
    assert main(["train", "--data.root", str(root), "--run-dir", str(run_dir)]) == 3
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert named in error
    assert not run_dir.exists(), "nothing is left behind"


def test_a_sound_folder_trains_evaluates_and_predicts(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    assert main(["train", "--data.root", str(root), "--run-dir", str(run_dir), *_run_options()]) == 0
    assert (
        main(
            [
                "eval",
                "--checkpoint",
                str(run_dir),
                "--data.root",
                str(root),
                "--out",
                str(tmp_path / "m.json"),
                "--scales",
                "0.5,1.0",
                "--flip",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert all(name in text for name in ("sky", "road", "tree", "mIoU"))
    assert main(["predict", "--checkpoint", str(run_dir), "--out", str(out), str(root / "val" / "images")]) == 0
    maps = sorted(p.name for p in out.iterdir())
    assert maps == ["a.png", "a_overlay.jpg", "bb.png", "bb_overlay.jpg", "ccc.png", "ccc_overlay.jpg"]
    assert Image.open(out / "a.png").size == (48, 40)
    assert np.array(Image.open(out / "a.png")).max() < 3


def _run_options() -> list[str]:
    small = ["--model.width", "32", "--model.depth", "2", "--model.num-heads", "2", "--model.head-channels", "8"]
    return [*small, "--augment.crop", "32", "32", "--train.steps", "2", "--train.batch-size", "2"]


def test_eval_reads_labels_as_training_did(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "classes.csv").unlink()
    run_dir, offset = tmp_path / "run", ["--data.label-offset", "-1", "--data.num-classes", "2"]
    assert main(["train", "--data.root", str(root), "--run-dir", str(run_dir), *_run_options(), *offset]) == 0
    trained = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["val/mIoU"]
    for more in ([], ["--data.root", str(root)]):
        assert main(["eval", "--checkpoint", str(run_dir), "--out", str(tmp_path / "m.json"), *more]) == 0
        result = json.loads((tmp_path / "m.json").read_text())
        assert result["mIoU"] == pytest.approx(trained)
        assert result["settings"]["data"]["label_offset"] == -1


def test_eval_refuses_classes_in_another_order(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert main(["train", "--data.root", str(root), "--run-dir", str(run_dir), *_run_options()]) == 0
    swapped = tmp_path / "swapped.csv"
    swapped.write_text("id,name,r,g,b\n0,road,1,2,3\n1,sky,4,5,6\n2,tree,7,8,9\n")
    assert main(["eval", "--checkpoint", str(run_dir), "--data.classes", str(swapped)]) == 2
    assert "class 0 must be 'sky'" in capsys.readouterr().err


def test_an_unwritable_run_folder_is_the_environments_fault(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["train", "--data.root", str(root), "--run-dir", str(blocked / "run")]) == 4
    assert "cannot be written" in capsys.readouterr().err
