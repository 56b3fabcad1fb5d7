"""Every known data set from its official layout to a score and a prediction, through its recipe where it has one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from setr_fast.cli import main
from setr_fast.config import Config, published, read_config, recipe_lines, recipe_names, recipe_path
from setr_fast.data.layouts.known import KNOWN, known_set
from setr_fast.data.source import open_source
from tests.data.test_known import build

TINY = "--model.width 32 --model.depth 2 --model.num-heads 2 --model.taps 0 1 --augment.crop 32 32"
STEPS = "--train.steps 2 --train.batch-size 2 --train.overlays 0 --data.workers 0"
SIZES = "--inference.stride 24 24 --inference.resize-short 32 --inference.min-short 32"
RECIPES = {
    "camvid": "camvid_tiny",
    "foodseg103": "SETR_MLA_Base_768x768_80k_foodseg103_bs_4",
    "urbanlf_real": "SETR_PUP_432x432_80k_urbanlf_real_bs_8",
    "urbanlf_syn": "SETR_PUP_480x480_80k_urbanlf_syn_bs_8",
    "synapse": "SETR_PUP_224x224_14k_synapse_bs_24",
    "rgbt_glass": "segmenter_mask_vit_b16_rgbt_glass",
}
TRAINED = [name for name in KNOWN if name != "dada_seg"]


def run(command: str, capsys: pytest.CaptureFixture[str], *further: str) -> str:
    code = main([*command.split(), *further])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


@pytest.mark.parametrize("name", TRAINED)
def test_train_eval_and_predict(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, folder = tmp_path / "data", tmp_path / "run"
    build(name, root)
    recipe = RECIPES.get(name, "folder_tiny")
    size = TINY.replace("taps 0 1", "taps 1") if "segmenter" in recipe else f"{TINY} --model.head-channels 8"
    data = f"--data.root {root} --data.dataset {name}"
    run(f"train --recipe {recipe} --run-dir {folder} {data} {size} {STEPS} {SIZES}", capsys)
    run(f"eval --checkpoint {folder} --out {tmp_path / 'scores.json'}", capsys)
    result = json.loads((tmp_path / "scores.json").read_text())
    source = open_source(read_config(folder / "config.toml", Config()).data, result["split"])
    assert result["images"] == len(source)
    assert list(result["IoU"]) == list(source.classes.names)
    assert all(metric in result for metric in known_set(name).metrics)
    Image.fromarray(source.read(0)[0]).save(tmp_path / "a.png")
    run(f"predict --checkpoint {folder} --out {tmp_path / 'masks'} {tmp_path / 'a.png'}", capsys)
    assert Image.open(tmp_path / "masks/a.png").size == Image.open(tmp_path / "a.png").size


def test_rare_classes_are_trained_on_more_often(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = "--data.builtin-train 8 --data.builtin-val 2 --data.builtin-size 32 --data.sampling rare_classes"
    size = f"{TINY} --model.head-channels 8 {STEPS} --train.log-every 1"
    run(f"train --run-dir {tmp_path / 'rare'} {data} {size}", capsys)
    assert 'sampling = "rare_classes"' in (tmp_path / "rare" / "config.toml").read_text()
    run(f"train --run-dir {tmp_path / 'plain'} {data.replace('rare_classes', 'uniform')} {size}", capsys)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[0] for name in ("rare", "plain")]
    losses = [json.loads(line)["train/loss"] for line in lines]
    assert losses[0] != losses[1], "other pictures, another loss"


@pytest.mark.parametrize(
    ("name", "recipe", "train", "count"),
    [("ade20k", "SETR_PUP_512x512_160k_ade20k_bs_16", "training", 2), ("pascal_voc", "folder_tiny", "val", 1)],
)
def test_real_pictures_through_the_recipe(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, recipe: str, train: str, count: int
) -> None:
    place = tmp_path / "run"
    data = f"--data.root {shared / 'data' / (name + '_samples')} --data.dataset {name} --data.train-split {train}"
    size = f"{TINY} --model.head-channels 8 --augment.base-scale 128 64"
    run(f"train --recipe {recipe} --run-dir {place} {data} {size} {STEPS} {SIZES}", capsys)
    run(f"eval --checkpoint {place} --out {tmp_path / 'scores.json'}", capsys)
    result = json.loads((tmp_path / "scores.json").read_text())
    assert (result["images"], len(result["IoU"])) == (count, {"ade20k": 150, "pascal_voc": 21}[name])


def test_model_of_cityscapes_is_scored_on_accidents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("cityscapes", tmp_path / "streets")
    build("dada_seg", tmp_path / "accidents")
    cityscapes = f"--recipe SETR_PUP_768x768_80k_cityscapes_bs_8 --data.root {tmp_path / 'streets'}"
    folder = tmp_path / "run"
    run(f"train {cityscapes} --run-dir {folder} {TINY} --model.head-channels 8 {STEPS} {SIZES}", capsys)
    plain = SIZES.replace("--inference.", "--") + " --crop 32 32"
    command = f"eval --recipe SETR_PUP_dada_seg --checkpoint {folder} --data.root {tmp_path / 'accidents'} {plain}"
    run(f"{command} --out {tmp_path / 'scores.json'}", capsys)
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["settings"]["data"]["crop_box"] == [162, 0, 1422, 600]
    assert result["pixels"] == result["images"] * 1260 * 600 * 2 // 3, "two of three ids count, within the box"
    refused = main(["train", "--recipe", "SETR_PUP_dada_seg", "--data.root", str(tmp_path / "accidents")])
    assert refused == 3
    assert "split of dada_seg must be val, got 'train'" in capsys.readouterr().err


def test_every_benchmark_row_has_a_recipe_that_says_what_is_ours() -> None:
    others = {name: read_config(recipe_path(name), Config()).data.dataset for name in recipe_names()}
    for dataset, figure in (("synapse", 79.6), ("foodseg103", 45.1), ("urbanlf_real", 77.74), ("urbanlf_syn", 77.69)):
        names = [name for name, used in others.items() if used == dataset]
        assert any(figure in (published(name).miou, published(name).dice) for name in names)
    assert {published(name).miou for name, used in others.items() if used == "dada_seg"} == {31.8, 30.4}
    glass = next(line for line in recipe_lines() if line.startswith("segmenter_mask_vit_b16_rgbt_glass"))
    assert "MAE 0.072" in glass
