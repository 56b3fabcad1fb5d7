"""The command eval, without the command line in front."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.options import DataConfig
from setr_fast.engine import checkpoints
from setr_fast.engine.checkpoints import checkpoint_folder
from setr_fast.engine.commands import eval_command, tally_for
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.places import pick_device
from setr_fast.engine.predictor import predict
from setr_fast.errors import BackendError, CheckpointError, ConfigError, DataError
from setr_fast.metrics.compare import compare_files
from setr_fast.metrics.options import MetricsConfig

INFERENCE = InferenceConfig()


@pytest.fixture
def data(tmp_path, make_picture) -> DataConfig:
    """Three pictures of 40 x 50 with masks of classes 0..3 of five, and a strip to be ignored."""
    for kind in ("images", "masks"):
        (tmp_path / "data" / "val" / kind).mkdir(parents=True)
    for index in range(3):
        label = np.random.default_rng(index).integers(0, 4, (40, 50)).astype(np.uint8)
        label[:4] = 255
        Image.fromarray(make_picture(40, 50)).save(tmp_path / "data/val/images" / f"s{index}.png")
        Image.fromarray(label).save(tmp_path / "data/val/masks" / f"s{index}.png")
    return DataConfig(root=tmp_path / "data")


def test_eval_returns_prints_and_writes_everything(checkpoint, data, tmp_path, make_model, capsys):
    out = tmp_path / "results" / "metrics.json"
    result = eval_command(checkpoint, data, InferenceConfig(flip=True), out=out, device="cpu")
    assert json.loads(out.read_text()) == result
    hits = pixels = 0
    for index in range(3):
        label = np.asarray(Image.open(data.root / f"val/masks/s{index}.png"))
        answers = predict(make_model(), data.root / f"val/images/s{index}.png", InferenceConfig(flip=True))
        hits += int(((label == answers) & (label != 255)).sum())
        pixels += int((label != 255).sum())
    assert result["aAcc"] == pytest.approx(hits / pixels)
    assert 0 <= result["mIoU"] <= 1
    assert 0 <= result["mAcc"] <= 1
    assert list(result["IoU"]) == [f"class_{i}" for i in range(5)]
    assert result["images"] == 3
    assert result["images_per_second"] == pytest.approx(3 / result["seconds"])
    assert result["settings"]["inference"]["flip"] is True
    assert result["settings"]["data"]["root"] == str(data.root)
    assert result["sha256"]["weights"] == hashlib.sha256(b"weights").hexdigest()
    printed = capsys.readouterr().out
    for word in ("class_4", "mIoU", "aAcc", "mAcc", "3 pictures"):
        assert word in printed


def test_eval_adds_what_is_asked_for_and_names_the_rules(checkpoint, data, tmp_path, capsys):
    plain = eval_command(checkpoint, data, INFERENCE, device="cpu")
    assert "boundary" not in plain
    assert "mae" not in plain
    assert plain["absent_classes"] == "left_out"
    asked = MetricsConfig(metrics=("mae", "boundary"), absent="counts_as_one", mae_class="class_2", bootstrap=200)
    out = tmp_path / "metrics.json"
    result = eval_command(checkpoint, data, INFERENCE, asked, out=out, device="cpu")
    assert json.loads(out.read_text()) == result
    assert result["absent_classes"] == "counts_as_one"
    assert result["aAcc"] == plain["aAcc"]
    assert result["boundary"]["ratio"] == 0.02
    assert 0 < result["boundary"]["mIoU"] < 1
    assert result["mae"]["class"] == "class_2"
    assert 0 < result["mae"]["MAE"] < 1
    assert result["mIoU_interval"]["resamples"] == 200
    assert result["mIoU_interval"]["low"] <= result["mIoU"] <= result["mIoU_interval"]["high"]
    assert result["settings"]["metrics"]["absent"] == "counts_as_one"
    assert len(result["pictures"]["names"]) == len(result["pictures"]["mae"]) == 3
    assert result["versions"]["setr_fast"]
    printed = capsys.readouterr().out
    for word in ("95% interval", "boundary mIoU", "MAE of class_2", "absent classes: counts_as_one"):
        assert word in printed
    assert eval_command(checkpoint, data, INFERENCE, MetricsConfig(bootstrap=0))["mIoU_interval"] is None


def test_two_results_of_one_set_can_be_compared(checkpoint, data, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    eval_command(checkpoint, data, INFERENCE, out=files[0])
    eval_command(checkpoint, data, InferenceConfig(flip=True), out=files[1])
    found = compare_files(*files)
    assert found.method == "paired bootstrap over pictures"
    assert ("inference.flip", False, True) in found.settings
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(data.root / "val/masks/s0.png")
    eval_command(checkpoint, data, INFERENCE, out=files[1])
    with pytest.raises(ConfigError, match="first's data"):
        compare_files(*files)


def test_hash_of_the_settings_follows_what_matters_and_not_where_it_lies(checkpoint, data, tmp_path):
    def digest(data: DataConfig, inference: InferenceConfig = INFERENCE, **scoring) -> str:
        return eval_command(checkpoint, data, inference, MetricsConfig(**scoring))["sha256"]["settings"]

    first = digest(data)
    shutil.copytree(data.root, tmp_path / "elsewhere")
    assert digest(replace(data, root=tmp_path / "elsewhere")) == first
    found = {first, digest(data, InferenceConfig(flip=True)), digest(data, absent="counts_as_one")}
    found.add(digest(replace(data, ignore_index=3)))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("wanted", "names", "index"),
    [(None, ("a", "b"), 1), ("b", ("a", "b", "c"), 1), ("2", ("a", "b", "c"), 2), ("0", ("1", "0", "2"), 1)],
)
def test_the_class_of_the_error_is_a_name_or_a_number(wanted, names, index):
    assert tally_for(MetricsConfig(metrics=("mae",), mae_class=wanted), names).probability_of == index


@pytest.mark.parametrize(
    ("wanted", "names", "told"),
    [
        (None, ("a", "b", "c"), "must be given for 3 classes"),
        ("glas", ("wall", "glass"), "did you mean glass"),
        ("9", ("a", "b"), "got '9'"),
        ("a", ("a", "a"), "one class's name"),
    ],
)
def test_a_class_that_is_none_is_a_usage_error(wanted, names, told):
    with pytest.raises(ConfigError, match=told):
        tally_for(MetricsConfig(metrics=("mae",), mae_class=wanted), names)


def test_hash_of_the_data_follows_names_and_content(checkpoint, data):
    def digest() -> str:
        return eval_command(checkpoint, data, INFERENCE)["sha256"]["data"]

    first = digest()
    assert digest() == first
    for kind in ("images", "masks"):
        (data.root / "val" / kind / "s2.png").rename(data.root / "val" / kind / "t2.png")
    renamed = digest()
    assert renamed != first
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(data.root / "val/masks/s0.png")
    assert digest() not in (first, renamed)


def test_eval_of_built_in_scenes_needs_no_folder(checkpoint, monkeypatch, make_model):
    monkeypatch.setattr(checkpoints, "load_model", lambda path, mapped: make_model(num_classes=8))
    result = eval_command(checkpoint, DataConfig(builtin_val=2, builtin_size=32), INFERENCE)
    assert result["images"] == 2
    assert "sky" in result["IoU"]
    assert len(result["sha256"]["data"]) == 64


def test_eval_refuses_what_does_not_fit_before_it_predicts(checkpoint, data, tmp_path):
    with pytest.raises(ConfigError, match="classes"):
        eval_command(checkpoint, replace(data, num_classes=4), INFERENCE)
    with pytest.raises(DataError, match="nosuch"):
        eval_command(checkpoint, data, INFERENCE, split="nosuch")
    with pytest.raises(ConfigError, match="out: must be a file"):
        eval_command(checkpoint, data, INFERENCE, out=tmp_path)
    with pytest.raises(CheckpointError, match="nowhere"):
        eval_command(tmp_path / "nowhere", data, INFERENCE)


def test_a_run_folder_means_its_best_else_its_newest_model(tmp_path):
    def save(*parts: str) -> Path:
        folder = tmp_path.joinpath(*parts)
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).touch()
        return folder

    with pytest.raises(CheckpointError, match="or a run folder"):
        checkpoint_folder(tmp_path)
    late = save("checkpoints", "step_1000")
    save("checkpoints", "step_900")
    (tmp_path / "checkpoints" / "step_2000").mkdir()  # not complete
    assert checkpoint_folder(tmp_path) == late
    best = save("best")
    assert checkpoint_folder(tmp_path) == best
    assert checkpoint_folder(best) == best
    assert checkpoint_folder(best / "model.safetensors") == best


def test_devices_are_checked_by_name():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="got 'toaster'"):
        pick_device("toaster")
    with pytest.raises(ConfigError, match="got 'meta'"):
        pick_device("meta")
    with pytest.raises(BackendError, match="GPUs, got 'cuda:99'"):
        pick_device("cuda:99")
