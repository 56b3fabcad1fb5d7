"""Pictures of more than three channels: read, augmented, normalised, trained on, predicted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from setr_fast.checkpoints.transfer import start_from
from setr_fast.cli import main
from setr_fast.data.layouts.folder import Sample
from setr_fast.data.options import AugmentConfig, DataConfig
from setr_fast.data.reading import PictureReader
from setr_fast.data.source import open_source
from setr_fast.data.transforms import ColourChange, TrainTransform, augment_channels, normalise_table
from setr_fast.engine.options import InferenceConfig
from setr_fast.errors import ConfigError, DataError, ShapeError
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.models.store import load_model
from tests.data.test_known import build

TINY = {"width": 32, "depth": 1, "num_heads": 2, "taps": (0,), "head_channels": 8, "aux_levels": (), "patch_size": 8}


def tiny(**changes: object) -> SegmentationModel:
    torch.manual_seed(0)
    return create_model("setr_pup_vit_t16", 3, 32, **(TINY | changes)).eval()


def picture(channels: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("channels", [4, 5, 6, 7])
def test_every_further_channel_is_treated_as_a_colour_that_is_not_changed(channels: int) -> None:
    image = torch.from_numpy(picture(channels))
    table = normalise_table(range(10, 10 + channels), range(50, 50 + channels))
    place = (60, 70), (3, 5), (64, 48), True
    change = ColourChange(hue=7)
    found = augment_channels(image, *place, change, table)
    assert found.shape == (channels, 64, 48)
    for index in range(3, channels):
        grey = image[..., index : index + 1].expand(-1, -1, 3).contiguous()
        alone = augment_channels(grey, *place, ColourChange(), table[index : index + 1].expand(3, -1).contiguous())
        assert found[index].equal(alone[0])
    assert found[:3].equal(augment_channels(image[..., :3].contiguous(), *place, change, table[:3].contiguous()))


def test_training_crop_has_all_channels_in_the_same_place() -> None:
    plane = picture(1)
    image = np.repeat(plane, 4, axis=2)
    transform = TrainTransform(AugmentConfig(crop=(24, 24), photometric=False), (0.0,) * 4, (1.0,) * 4)
    pixels, _ = transform(image, np.zeros(plane.shape[:2], np.uint8), np.random.default_rng(0))
    assert pixels.shape == (4, 24, 24)
    assert pixels[3].equal(pixels[0])
    with pytest.raises(ShapeError, match=r"\[H, W, 4\]"):
        transform(image[..., :3], np.zeros(plane.shape[:2], np.uint8), np.random.default_rng(0))


def test_model_of_five_channels_predicts_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    mean, std = (127.5,) * 5, (60.0,) * 5
    model = tiny(in_chans=5, mean=mean, std=std)
    image = picture(5)
    for config in (InferenceConfig(mode="whole"), InferenceConfig(mode="slide", scales=(0.75, 1.0), flip=True)):
        found = model.predict(image, mode=config.mode, scales=config.scales, flip=config.flip)
        assert found.shape == (40, 56)
    normalised = torch.from_numpy((image.astype(np.float32) - 127.5) / 60).permute(2, 0, 1)[None]
    whole = model(normalised).argmax(1)[0].numpy()
    assert (model.predict(image, mode="whole") != whole).mean() < 1e-3
    model.save(tmp_path / "model")
    assert (load_model(tmp_path / "model").predict(image, mode="whole") == model.predict(image, mode="whole")).all()
    with pytest.raises(ShapeError, match=r"\[H, W, 5\], got uint8 \[40, 56, 3\]"):
        model.predict(image[..., :3])
    with pytest.raises(ConfigError, match="mean and std must be 5 numbers"):
        tiny(in_chans=5, mean=(0.0,) * 4, std=(1.0,) * 4)


def test_colour_weights_are_extended_by_the_named_rule(tmp_path: Path) -> None:
    rgb = tiny()
    rgb.save(tmp_path / "rgb")
    statistics = {"mean": (*rgb.spec.mean, 127.5), "std": (*rgb.spec.std, 127.5)}
    image = picture(4)
    zero = tiny(in_chans=4, **statistics)
    told = start_from(zero, tmp_path / "rgb", extra_channels="zero")
    assert told["changed"]["encoder.patch_embed.weight"] == "kernels of 1 further channels: zero"
    zero.eval()
    assert (zero.predict(image, mode="whole") == rgb.predict(image[..., :3].copy(), mode="whole")).all()
    mean = tiny(in_chans=4, **statistics)
    start_from(mean, tmp_path / "rgb", extra_channels="mean")
    kernels = mean.encoder.patch_embed.weight
    assert kernels[:, :3].equal(rgb.encoder.patch_embed.weight)
    assert kernels[:, 3].equal(rgb.encoder.patch_embed.weight.mean(1))


def test_channels_come_from_rgba_arrays_and_folders(tmp_path: Path) -> None:
    image = picture(4)
    Image.fromarray(image, "RGBA").save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", image)
    np.save(tmp_path / "c.npy", image[..., 3].astype(np.uint16) << 8)
    Image.fromarray(image[..., :3].copy()).save(tmp_path / "d.png")
    read = PictureReader(channels=4)
    for found in (read.file(tmp_path / "a.png"), read.file(tmp_path / "b.npy")):
        np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(read.file(tmp_path / "d.png", tmp_path / "c.npy"), image)
    assert read.size(Sample("b", tmp_path / "b.npy", None)) == (40, 56)
    for broken, words in (("d.png", "4 channels, got mode RGB"), ("c.npy", r"\[H, W, 4\], got")):
        with pytest.raises(DataError, match=words):
            read.file(tmp_path / broken)
    np.save(tmp_path / "e.npy", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match="56 x 40, got 8 x 8"):
        read.file(tmp_path / "d.png", tmp_path / "e.npy")


def test_folder_of_further_channels_is_paired_by_stem(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for folder, content in (
            ("images", picture(3)),
            ("masks", picture(1)[..., 0] % 2),
            ("thermal", picture(1)[..., 0]),
        ):
            path = tmp_path / "train" / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    config = DataConfig(root=tmp_path, channels=4, extra="thermal", num_classes=2)
    image, _ = open_source(config, "train").read(1)
    np.testing.assert_array_equal(image, np.dstack((picture(3), picture(1))))
    (tmp_path / "train/thermal/b.png").unlink()
    with pytest.raises(DataError, match="picture must have one file 'b' in"):
        open_source(config, "train")


def test_glass_is_trained_evaluated_and_predicted_with_temperatures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    build("rgbt_glass", root)
    model = "--model.width 32 --model.depth 1 --model.num-heads 2 --model.taps 0 --model.head-channels 8"
    steps = "--train.steps 2 --train.batch-size 2 --augment.crop 32 32 --data.workers 0 --train.overlays 1"
    data = f"--data.root {root} --data.dataset rgbt_glass --data.channels 4 --data.extra-mean 100"
    assert main(f"train --run-dir {run} {data} {model} {steps}".split()) == 0, capsys.readouterr().err
    out = tmp_path / "scores.json"
    assert main(f"eval --checkpoint {run} --metrics mae --out {out}".split()) == 0, capsys.readouterr().err
    assert 0 <= json.loads(out.read_text())["mae"]["MAE"] <= 1
    assert load_model(run / "best").spec.mean[3:] == (100.0,)
    pictures, temperatures = tmp_path / "in", tmp_path / "temperatures"
    pictures.mkdir()
    temperatures.mkdir()
    (pictures / "x.png").write_bytes((root / "test/scene_1/1/rgb.png").read_bytes())
    (temperatures / "x.npy").write_bytes((root / "test/scene_1/1/temperature.npy").read_bytes())
    command = f"predict --checkpoint {run} --out {tmp_path / 'masks'} {pictures}"
    assert main([*command.split(), "--extra", str(temperatures)]) == 0
    assert Image.open(tmp_path / "masks/x.png").size == (48, 40)
    assert main(command.split()) == 3
    assert "4 channels, got mode RGB" in capsys.readouterr().err
