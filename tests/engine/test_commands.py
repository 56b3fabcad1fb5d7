"""The commands eval and predict, without the command line in front."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.checkpoints.convert import convert
from setr_fast.checkpoints.options import ConvertConfig
from setr_fast.data.options import DataConfig
from setr_fast.engine import checkpoints
from setr_fast.engine.checkpoints import checkpoint_folder
from setr_fast.engine.commands import eval_command, pick_device, predict_command, predict_files, tally_for
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.errors import BackendError, CheckpointError, ConfigError, DataError
from setr_fast.metrics.compare import compare_files
from setr_fast.metrics.options import MetricsConfig
from setr_fast.models.model import create_model

INFERENCE = InferenceConfig()


@pytest.fixture
def checkpoint(tmp_path, make_model, monkeypatch) -> Path:
    """A folder that looks like a saved model and loads as the tiny one."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(checkpoints, "load_model", lambda path: make_model())
    return folder


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
    monkeypatch.setattr(checkpoints, "load_model", lambda path: make_model(num_classes=8))
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


def test_predict_writes_class_map_and_overlay_at_the_pictures_size(checkpoint, make_model, make_picture, tmp_path):
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (40, 70)), ("b.c.png", (5, 90))):
        Image.fromarray(make_picture(*size)).save(tmp_path / "in" / name)
    predict_command(checkpoint, [tmp_path / "in"], tmp_path / "new" / "out", INFERENCE)
    assert sorted(os.listdir(tmp_path / "new/out")) == ["a.png", "a_overlay.png", "b.c.png", "b.c_overlay.png"]
    for name in ("a", "b.c"):
        expected = predict(make_model(), tmp_path / "in" / f"{name}.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new/out" / f"{name}.png")), expected)
        assert Image.open(tmp_path / "new/out" / f"{name}_overlay.png").size == expected.shape[::-1]


def test_broken_pictures_are_named_and_the_others_are_done(checkpoint, make_picture, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(make_picture(30, 30)).save(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    with pytest.raises(DataError, match="2 of 3") as caught:
        predict_command(checkpoint, [folder], tmp_path / "out", INFERENCE)
    assert caught.value.exit_code == 3
    assert sorted(os.listdir(tmp_path / "out")) == ["good.png", "good_overlay.png"]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "cut.png" in errors[0]
    assert "empty.jpg" in errors[1]


def test_a_missing_file_does_not_stop_the_others(checkpoint, make_picture, tmp_path, capsys):
    Image.fromarray(make_picture(9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 of 2"):
        predict_command(checkpoint, [tmp_path / "gone.jpg", tmp_path / "a.png"], tmp_path / "out", INFERENCE)
    assert "gone.jpg" in capsys.readouterr().err
    assert len(os.listdir(tmp_path / "out")) == 2


def test_the_same_file_twice_is_done_once(checkpoint, make_picture, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(make_picture(9, 9)).save(tmp_path / "in/a.png")
    predict_command(
        checkpoint, [tmp_path / "in", tmp_path / "in/a.png", tmp_path / "in/../in/a.png"], tmp_path / "out", INFERENCE
    )
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "a_overlay.png"]


def test_an_output_folder_that_cannot_be_is_a_usage_error(checkpoint, make_picture, tmp_path):
    Image.fromarray(make_picture(9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="out"):
        predict_command(checkpoint, [tmp_path / "a.png"], tmp_path / "a.png", INFERENCE)


def _mock_av(frames: list, error: bool = False) -> types.ModuleType:
    class Container:
        streams = types.SimpleNamespace(video=frames)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def decode(self, video):
            yield from frames
            if error:
                raise module.FFmpegError("cut off")

    module = types.ModuleType("av")
    module.FFmpegError = type("FFmpegError", (ValueError,), {})
    module.open = lambda path: Container()
    module.__spec__ = types.SimpleNamespace(name="av")
    return module


def _frame(picture: np.ndarray, rotation: int = 0) -> types.SimpleNamespace:
    return types.SimpleNamespace(to_ndarray=lambda format: picture, rotation=rotation)


def _empty(path: Path) -> Path:
    path.touch()
    (path.parent / "out").mkdir()
    return path


def test_a_video_becomes_a_folder_of_frames(make_model, make_picture, tmp_path, monkeypatch):
    pictures = [make_picture(12, 20), make_picture(12, 21)]
    monkeypatch.setitem(sys.modules, "av", _mock_av([_frame(pictures[0]), _frame(pictures[1], 90)]))
    predict_files(make_model(), [_empty(tmp_path / "...mp4")], tmp_path / "out", INFERENCE)
    written = tmp_path / "out" / ".._frames"
    assert sorted(os.listdir(written)) == ["000000.png", "000000_overlay.png", "000001.png", "000001_overlay.png"]
    expected = predict(make_model(), np.rot90(pictures[1]))
    np.testing.assert_array_equal(np.asarray(Image.open(written / "000001.png")), expected)


@pytest.mark.parametrize("count", [0, 1])
def test_a_cut_video_leaves_nothing_half_done(make_model, make_picture, tmp_path, monkeypatch, capsys, count):
    monkeypatch.setitem(sys.modules, "av", _mock_av([_frame(make_picture(9, 9))] * count, error=count > 0))
    with pytest.raises(DataError, match="1 of 1"):
        predict_files(make_model(), [_empty(tmp_path / "clip.MP4")], tmp_path / "out", INFERENCE)
    assert "clip.MP4" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_without_its_reader_is_refused_before_any_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match="pip install av") as caught:
        predict_command(checkpoint, [tmp_path / "clip.mp4"], tmp_path / "out", INFERENCE)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("folder", ["images", "exif", "names"])
def test_hostile_folder_is_done_or_refused_file_by_file(checkpoint, shared, tmp_path, capsys, make_model, folder):
    """Every file gives a map of its upright size inside the output folder, or is named on stderr."""
    files = sorted(path for path in (shared / "data" / "hostile" / folder).iterdir())
    files = [path for path in files if path.name != "size_8000x6000.jpg"]  # in fixed memory, but slow: see below
    out = tmp_path / "out"
    try:
        predict_command(checkpoint, files, out, INFERENCE)
        failed = 0
    except DataError as error:
        failed = int(str(error).split("got ")[1].split(" ")[0])
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == failed
    refused = {path for path in files if any(path.name in line for line in errors)}
    assert len(refused) == failed
    assert len(os.listdir(out)) == 2 * (len(files) - failed)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}, "nothing is written elsewhere"
    if folder == "exif":
        assert not refused
        assert {Image.open(path).size for path in out.iterdir()} >= {(96, 64)}
    if folder == "names":
        assert not refused
        assert (out / "..%2F..%2Fescape.png").is_file()
        assert {path.stem for path in files} == {
            path.name[:-4] for path in out.iterdir() if "_overlay" not in path.name
        }
    if folder == "images":
        must_fail = {"truncated_half.jpg", "truncated_header.jpg", "truncated.png", "corrupt_crc.png", "zero_byte.jpg"}
        must_fail |= {"zero_byte.png", "text_file.png", "html_error_page.jpg", "random_bytes.jpg", "lfs_pointer.png"}
        must_fail |= {"bomb_header_60000x60000.png", "zero_size_header.png"}
        assert must_fail <= {path.name for path in refused}
        for name, size in (("size_5000x3_panorama", (5000, 3)), ("size_1x1", (1, 1)), ("size_odd_223x97", (223, 97))):
            assert Image.open(out / f"{name}.png").size == size


@pytest.mark.slow
def test_a_48_megapixel_picture_is_done_within_a_gigabyte(shared, tmp_path, make_model):
    resource = pytest.importorskip("resource")
    picture = shared / "data/hostile/images/size_8000x6000.jpg"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = make_model(image_size=(512, 512), num_classes=8)
    started = time.perf_counter()
    predict_files(model, [picture], tmp_path, INFERENCE)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert Image.open(tmp_path / "size_8000x6000.png").size == (8000, 6000)
    # picture and overlay 144 MB each, class map 48 MB; all logits at once would be 1536 MB
    assert grown < 1024, f"{grown:.0f} MiB in {time.perf_counter() - started:.0f} s"


def test_predict_reads_a_weights_file_of_another_code_base(tmp_path: Path) -> None:
    model = create_model("segmenter_mask_vit_t16", 5, 64, depth=2, stride=(32, 32))
    model.save(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "theirs.pth", ConvertConfig(to="segmenter"))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source, out in ((tmp_path / "native", "ours"), (tmp_path / "theirs.pth", "theirs")):
        predict_command(source, [tmp_path / "a.png"], tmp_path / out, INFERENCE)
    ours, theirs = (np.array(Image.open(tmp_path / name / "a.png")) for name in ("ours", "theirs"))
    assert len(np.unique(ours)) > 1
    np.testing.assert_array_equal(ours, theirs)
