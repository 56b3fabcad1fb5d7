"""Published recipes: the settings of the papers' tables, and a run through them on tiny trees in official layouts."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch

from setr_fast.cli import main
from setr_fast.config import RECIPES, Config, published, read_config, recipe_lines, recipe_names, recipe_path
from setr_fast.data.classes import read_class_table
from setr_fast.data.layouts.known import known_set
from setr_fast.errors import ConfigError
from setr_fast.models.model import create_model
from setr_fast.train.optimizer import learning_rate, parameter_groups
from tests.data.test_known import build

CLASSES = {"ade20k": 150, "cityscapes": 19, "pascal_context": 60}
PUBLISHED = [name for name in recipe_names() if published(name).source]
# Rows of other people's benchmarks come without most of their settings.
ALL = [name for name in PUBLISHED if read_config(recipe_path(name), Config()).data.dataset in CLASSES]
OTHERS = [name for name in PUBLISHED if name not in ALL]
OFFICIAL_SETR = [name for name in ALL if "fudan-zvg" in published(name).source]
SEGMENTER = [name for name in ALL if "rstrudel" in published(name).source]
MMSEG = [name for name in ALL if "mmsegmentation" in published(name).source]
PADDLESEG = [name for name in ALL if "PaddleSeg" in published(name).source]


def recipe(name: str) -> Config:
    return read_config(recipe_path(name), Config())


def test_there_is_a_recipe_for_every_published_row() -> None:
    zoo = [name for name in ALL if "PaddleViT" in published(name).source]
    assert (len(OFFICIAL_SETR), len(zoo), len(SEGMENTER), len(MMSEG), len(PADDLESEG)) == (26, 13, 9, 12, 7)


def test_settings_are_those_of_the_written_table(shared: Path) -> None:
    """Every row of the table of official SETR configurations, read here independently of how recipes were made."""
    text = (shared / "spec" / "recipes.md").read_text()
    section = text[text.index("## 4. SETR") : text.index("### 4.1")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    sets = {"PC": ("480x480", "pascal_context"), "ADE": ("512x512", "ade20k"), "City": ("768x768", "cityscapes")}
    seen = set()
    for config, crop, classes, iterations, batch, rate, single, several in rows[2:]:
        model, where = re.match(r"(\S+) (PC|ADE|City)", config).groups()  # type: ignore[union-attr]
        size, dataset = sets[where]
        schedules = re.findall(r"(\d+)k", iterations) or ["40", "80"]
        figures = [value.strip() for value in single.split("/")]
        for index, thousands in enumerate(schedules):
            middle = model.replace("-", "_")
            name = f"SETR_{middle}_{size}_{thousands}k_{dataset}_bs_{batch}"
            seen.add(name)
            found, result = recipe(name), published(name)
            assert found.train.steps == int(thousands) * 1000
            assert found.train.batch_size == int(batch)
            assert found.optim.lr == float(rate)
            assert found.augment.crop == (int(crop), int(crop))
            assert CLASSES[dataset] == (int(classes) if classes else CLASSES[dataset])
            assert result.miou == float(figures[index])
            if re.fullmatch(r"[\d.]+.*", several) and len(figures) == 1:
                assert result.miou_multi_scale == float(several.split()[0])
    assert seen == set(OFFICIAL_SETR)


def test_recipes_are_short_and_say_only_what_differs() -> None:
    for name in PUBLISHED:
        text = (RECIPES / f"{name}.toml").read_text()
        assert 10 <= len([line for line in text.splitlines() if not line.startswith("#")]) <= 25, name
        for section, values in tomllib.loads(text).items():
            ours = getattr(Config(), section, None)
            for key, value in values.items() if ours is not None else ():
                told = tuple(value) if isinstance(value, list) else value
                assert (section, key) == ("model", "name") or told != getattr(ours, key), f"{name}: {section}.{key}"


@pytest.mark.parametrize("name", ALL)
def test_published_optimiser(name: str) -> None:
    """SGD, momentum 0.9, no weight decay, poly 0.9, no warm-up; ten times the rate in SETR's heads only."""
    config, source = recipe(name), published(name).source
    setr = config.model.name.startswith("setr")
    optim = config.optim
    assert (optim.name, optim.momentum, optim.weight_decay, optim.power, optim.warmup_steps) == ("sgd", 0.9, 0, 0.9, 0)
    # PaddleSeg's MLA: one rate for all.
    assert optim.head_lr_multiplier == (10 if setr and not ("PaddleSeg" in source and "_mla_" in name) else 1)
    assert optim.nesterov == ("rstrudel" in source)
    assert optim.min_lr == (1e-4 if setr or "mmsegmentation" in source else 1e-5)
    assert config.train.clip_norm == (1.0 if "PaddleViT" in source else 0.0)
    assert config.augment.flip == 0.5
    augment, paddle = config.augment, "Paddle" in source
    assert augment.ratio_range == ((0.25, 2.0) if name in PADDLESEG and setr else (0.5, 2.0))
    assert augment.ratio_step == (0.25 if name in PADDLESEG else 0.0)
    assert augment.distort == ((0.5 if setr and name in PADDLESEG else 0.4) if paddle else 0.0)
    assert augment.cat_max_ratio == (1.0 if paddle else 0.75)
    assert (augment.base_scale is None) == paddle


def test_rows_of_mmsegmentation_are_those_of_the_written_tables(shared: Path) -> None:
    """Both tables, read here independently of how the recipes were made."""
    text = (shared / "spec" / "recipes.md").read_text()
    found = {}
    for head, dataset, batch, rate, single, several in re.findall(
        r"^\| (\w+) 8xb\d (ADE|City)[ 0-9k]*\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        text[text.index("### 4.2") : text.index("### 4.3")],
        re.MULTILINE,
    ):
        thousands = {"ADE": 160, "City": 80}[dataset]
        found[(head, {"ADE": "ade20k", "City": "cityscapes"}[dataset], int(batch))] = (
            thousands * 1000,
            float(rate),
            float(single),
            float(several),
        )
    assert len(found) == 7
    for name in (n for n in MMSEG if n.startswith("setr")):
        config, result = recipe(name), published(name)
        head = config.model.name.split("_")[1]
        row = (config.train.steps, config.optim.lr, result.miou, result.miou_multi_scale)
        assert found.pop((head, config.data.dataset, config.train.batch_size)) == row
    assert not found
    section = text[text.index("mmseg 1.x Segmenter (160k") : text.index("PaddleSeg Segmenter (ADE")]
    rows = re.findall(r"^\| vit-(\w) (\w+).*\| (\d+) \| \d+/(\d+) \| ([\d.]+) \| ([\d.]+) \|$", section, re.MULTILINE)
    assert len(rows) == 5
    for size, head, crop, stride, single, several in rows:
        name = f"segmenter_vit-{size}_{'fcn' if head == 'linear' else head}_8xb1-160k_ade20k-{crop}x{crop}"
        config, result = recipe(name), published(name)
        assert (config.augment.crop, config.inference.stride) == ((int(crop),) * 2, (int(stride),) * 2)
        assert (result.miou, result.miou_multi_scale) == (float(single), float(several))


def test_every_recipe_builds_its_model_for_its_data() -> None:
    """Full size, on the meta device, each kind once; the classes are those of the data set."""
    sizes: dict[tuple[str, str], float] = {}
    for name in recipe_names():
        config = recipe(name)
        known = None if config.data.dataset is None else known_set(config.data.dataset)
        count = config.data.num_classes or 2
        if known is not None:
            count = read_class_table(known.table_path).num_classes if known.table_path is not None else count
            assert count >= 2, name
            assert config.data.val_split in known.splits, name
            assert config.data.train_split in known.splits or config.data.dataset == "dada_seg", name
        kind = (config.model.name, repr(config.model))
        if kind not in sizes:
            with torch.device("meta"):
                model = create_model(config.model.name, count, config.augment.crop, **config.model.overrides())
            assert model.spec.num_classes == count
            sizes[kind] = sum(p.numel() for p in model.parameters()) / 1e6
    largest = {name: size for (name, _), size in sizes.items()}
    assert largest["segmenter_mask_vit_l16"] == pytest.approx(330, rel=0.03), "334 million in the paper"
    assert largest["segmenter_mask_vit_t16"] == pytest.approx(7, rel=0.06), "7 million in the paper"


def test_rates_of_every_parameter_group() -> None:
    """The neck of MLA learns at the encoder's rate: it is no head in the published code."""
    config = recipe("SETR_MLA_768x768_80k_cityscapes_bs_8")
    with torch.device("meta"):
        model = create_model(config.model.name, 19, 768)
    rates = {}
    for group in parameter_groups(model, config.optim):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            rates[id(parameter)] = (group["base_lr"], group["weight_decay"])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        head = name.startswith(("head.", "aux_heads."))
        assert rates[id(parameter)] == (pytest.approx(0.02 if head else 0.002), 0.0), name
    assert learning_rate(0.02, 0, 80000, config.optim) == pytest.approx(0.02)
    assert learning_rate(0.02, 40000, 80000, config.optim) == pytest.approx((0.02 - 1e-4) * 0.5**0.9 + 1e-4)
    assert learning_rate(0.02, 79999, 80000, config.optim) == pytest.approx(1e-4, rel=0.01)


def test_list_shows_model_data_schedule_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    line = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("SETR_PUP_512x512_160k_ade20k"))
    for part in ("setr_pup_vit_l16", "ade20k", "512x512", "160000 x 16", "48.62", "50.09", "fudan-zvg"):
        assert part in line
    assert len(recipe_lines()) == len(recipe_names()) + 1


def test_unknown_key_of_the_published_table_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setr_fast.config.RECIPES", tmp_path)
    (tmp_path / "mine.toml").write_text("[published]\nmIoU = 1.0\n")
    with pytest.raises(ConfigError, match="miou"):
        published("mine")


SMALL = "--model.width 64 --model.depth 4 --model.num-heads 2 --train.steps 2 --train.batch-size 2 --data.workers 0"


@pytest.mark.parametrize(
    ("name", "dataset", "options"),
    [
        ("SETR_MLA_512x512_160k_ade20k_bs_16", "ade20k", "--model.taps 0 1 2 3 --model.head-channels 16"),
        ("SETR_PUP_768x768_80k_cityscapes_bs_8", "cityscapes", "--model.taps 0 1 2 3 --model.head-channels 16"),
        ("segmenter_mask_vit_l16_pascal_context_480_80128", "pascal_context", "--model.taps 3"),
    ],
)
def test_train_eval_and_predict_through_the_recipe(
    name: str, dataset: str, options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    build(dataset, root)
    sizes = "--augment.crop 32 32 --inference.stride 24 24 --inference.resize-short 32 --inference.min-short 32"
    arguments = f"train --recipe {name} --data.root {root} --run-dir {run} {SMALL} {options} {sizes}".split()
    assert main(arguments) == 0, capsys.readouterr().err
    out = tmp_path / "scores.json"
    assert main(["eval", "--checkpoint", str(run), "--data.root", str(root), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["images"] == 1
    assert len(result["IoU"]) == CLASSES[dataset]
    again = f"eval --recipe {name} --checkpoint {run} --data.root {root} --inference.resize-short 32 --stride 24 24"
    again = again.replace("--inference.", "--") + " --crop 32 32 --min-short 32 --out " + str(tmp_path / "again.json")
    assert main(again.split()) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "again.json").read_text())["mIoU"] == result["mIoU"]
    picture = next(root.rglob("*.jpg"), None) or next(root.rglob("*_leftImg8bit.png"))
    assert main(["predict", "--checkpoint", str(run), "--out", str(tmp_path / "masks"), str(picture)]) == 0
    assert (tmp_path / "masks" / f"{picture.stem}.png").is_file()
