"""The table of parameter groups, against the published rules read off the written description."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from setr_fast.cli import main
from setr_fast.config import Config, published, read_config, recipe_names, recipe_path
from setr_fast.models.model import create_model
from setr_fast.train.parameter_table import rows

# Row of the written table of optimisers, by what a recipe's source and head say.
FAMILIES = {
    "official SETR, mmseg SETR": lambda source, head: head != "segmenter" and ("fudan" in source or "mmseg" in source),
    "mmseg Segmenter": lambda source, head: head == "segmenter" and "mmseg" in source,
    "official Segmenter": lambda source, head: "rstrudel" in source,
    "PaddleSeg SETR": lambda source, head: head != "segmenter" and "PaddleSeg" in source,
    "PaddleSeg Segmenter": lambda source, head: head == "segmenter" and "PaddleSeg" in source,
    "PaddleViT": lambda source, head: "PaddleViT" in source,
}


def _written(shared: Path) -> dict[str, list[str]]:
    text = (shared / "spec" / "recipes.md").read_text()
    section = text[text.index("## 3. Optimiser") : text.index("poly: lr(t)")]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in lines[2:]}


def _number(text: str) -> float:
    found = re.search(r"\d[\d.e-]*", text)
    return float(found[0].rstrip(".")) if found else 0.0


DESCRIBED = {"ade20k", "cityscapes", "pascal_context"}  # rows of other people's benchmarks state no rates


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in recipe_names()
        if published(name).source and read_config(recipe_path(name), Config()).data.dataset in DESCRIBED
    ],
)
def test_every_group_has_the_rate_and_decay_of_the_written_table(name: str, shared: Path) -> None:
    config, source = read_config(recipe_path(name), Config()), published(name).source
    head = "segmenter" if config.model.name.startswith("segmenter") else "setr"
    (family,) = (title for title, fits in FAMILIES.items() if fits(source, head))
    kind, momentum, decay, _, lowest, warmup, multipliers, clip = _written(shared)[family]
    small = {"width": 64, "depth": 4, "num_heads": 1}
    changes = {**config.model.overrides(), **small, "taps": (0, 1, 2, 3) if head == "setr" else (3,)}
    with torch.device("meta"):
        model = create_model(config.model.name, 3, image_size=64, **{**changes, "pos_grid": (4, 4)})
    steps, lr = config.train.steps, config.optim.lr
    assert "SGD" in kind
    assert config.optim.nesterov == ("with Nesterov" in kind)
    assert config.optim.momentum == _number(momentum)
    assert config.train.clip_norm == _number(clip)
    assert warmup == "none"
    assert config.optim.warmup_steps == 0
    ten = "\u00d710" in multipliers and not ("MLA \u00d71 (see" in multipliers and "_mla_" in config.model.name)
    found = rows(model, config.optim, steps)
    apart = "not aux LN/BN" in multipliers and "_mla_" not in config.model.name  # MLA's have none
    extra = {"norms of auxiliary heads"} if apart else set()
    assert {row.name.partition(",")[0] for row in found} - {"frozen"} == {"heads", "encoder", *extra}
    for row in (row for row in found if row.name != "frozen"):
        base, minimum = lr * (10 if ten and row.name.startswith("heads") else 1), _number(lowest)
        expected = [(base - minimum) * (1 - step / steps) ** 0.9 + minimum for step in (0, steps // 2, steps - 1)]
        assert row.rates == pytest.approx(expected, rel=1e-9), row.name
        assert row.weight_decay == _number(decay)
    named = dict(model.named_parameters())
    in_heads = sum(
        p.numel()
        for n, p in named.items()
        if n.startswith(("head.", "aux_heads.")) and p.requires_grad
        if not (apart and n.startswith("aux_heads.") and (".norm." in n or ".bn." in n))
    )
    assert sum(row.parameters for row in found if row.name.startswith("heads")) == in_heads
    assert sum(row.parameters for row in found) == sum(p.numel() for p in named.values())


def test_the_verb_shows_file_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "SETR_MLA_768x768_80k_cityscapes_bs_8"]) == 0
    out = capsys.readouterr().out
    assert 'dataset = "cityscapes"' in out
    assert "19 classes; sgd, momentum 0.9; poly 0.9 over 80000 steps, 0 of warm-up, down to 0.0001" in out
    assert re.search(r"heads, no decay +\d+ +[\d,]+ +0\.02 +0\.01076 +0\.0001\S* +0\n", out)
    assert re.search(r"encoder +\d+ +[\d,]+ +0\.002 +", out)
    assert main(["recipes", "SETR_MLA_768x768_80k_cityscape_bs_8"]) == 2
    assert "SETR_MLA_768x768_80k_cityscapes_bs_8" in capsys.readouterr().err
