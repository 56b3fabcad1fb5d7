"""Configuration: precedence, types, unknown keys, and the way back to TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from setr_fast.config import Config, read_config, recipe_names, recipe_path, to_toml
from setr_fast.data.options import AugmentConfig, DataConfig
from setr_fast.engine.options import InferenceConfig
from setr_fast.errors import ConfigError
from setr_fast.train.options import LossConfig, OptimConfig, ParallelConfig, TrainConfig


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_file_lies_over_defaults_and_leaves_the_rest(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "a.toml", '[optim]\nlr = 3e-4\nname = "sgd"\n[data]\nroot = "x/y"\n[augment]\ncrop = [64, 96]\n'
    )
    config = read_config(file, Config())
    assert config.optim.lr == 3e-4
    assert config.optim.name == "sgd"
    assert config.data.root == Path("x/y")
    assert config.augment.crop == (64, 96)
    assert config.train == Config().train


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.toml", "[model]\ntaps = [1, 2, 3]\n[inference]\nscales = [0.5, 1.0]\nstride = [3, 4]\n")
    config = read_config(file, Config())
    assert read_config(_write(tmp_path / "b.toml", to_toml(config)), Config()) == config


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[optim]\nlearning_rat = 1\n", r"unknown key 'learning_rat'"),
        ("[optim]\nlrr = 1.0\n", r"unknown key 'lrr'; did you mean lr"),
        ("[optm]\nlr = 1.0\n", r"unknown key 'optm'; did you mean optim"),
        ("[train]\nsteps = 1.5\n", r"steps: must be a whole number, got 1.5"),
        ("[train]\nsteps = true\n", r"steps: must be a whole number, got True"),
        ("[train]\nsteps = 0\n", r"train.steps: must be 1 or more, got 0"),
        ('[optim]\nname = "adam"\n', r"must be adamw or sgd, got 'adam'"),
        ("[augment]\ncrop = [1]\n", r"must have 2 entries"),
        ("[augment]\nratio_range = [2.0, 1.0]\n", r"low <= high"),
        ("optim = 3\n", r"optim must be a table"),
        ("[optim\n", r"not a readable TOML file"),
    ],
)
def test_bad_files_are_one_line_that_says_what_to_do(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        read_config(_write(tmp_path / "bad.toml", text), Config())
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: no such config file"):
        read_config(tmp_path / "gone.toml", Config())


def test_every_recipe_is_readable_and_says_what_it_is() -> None:
    assert recipe_names()
    for name in recipe_names():
        assert recipe_path(name).read_text().startswith("# "), name
        read_config(recipe_path(name), Config())


def test_unknown_recipe_names_the_nearest() -> None:
    known = recipe_names()[0]
    with pytest.raises(ConfigError, match=f"did you mean {known}"):
        recipe_path(known + "x")


def test_options_check_themselves_in_python_too() -> None:
    with pytest.raises(ConfigError, match=r"inference\.mode: must be auto or whole or slide, got 'hole'"):
        InferenceConfig(mode="hole")  # type: ignore[arg-type]


NAN, ENDLESS = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (OptimConfig, {"lr": ENDLESS}),
        (OptimConfig, {"min_lr": NAN}),
        (OptimConfig, {"power": -1.0}),
        (OptimConfig, {"weight_decay": -0.1}),
        (OptimConfig, {"momentum": 1.0}),
        (OptimConfig, {"betas": (0.9, -1.0)}),
        (LossConfig, {"weights": ()}),
        (LossConfig, {"ohem_min_kept": 10**20}),
        (LossConfig, {"focal_alpha": NAN}),
        (LossConfig, {"class_weights": (1.0, ENDLESS)}),
        (TrainConfig, {"clip_norm": -1.0}),
        (TrainConfig, {"peak_tflops": NAN}),
        (TrainConfig, {"seed": 2**64}),
        (TrainConfig, {"validate_every": -1}),
        (TrainConfig, {"save_every": -1}),
        (TrainConfig, {"overlays": -1}),
        (ParallelConfig, {"timeout": 1e30}),
        (OptimConfig, {"lr": 1e300}),
        (OptimConfig, {"head_lr_multiplier": 1e300}),
        (DataConfig, {"max_pixels": 0}),
        (DataConfig, {"ignore_index": -1}),
        (DataConfig, {"shard_picture": "jpg"}),
        (DataConfig, {"shard_cache_gib": 1.0}),
        (DataConfig, {"builtin_train": 10**20}),
        (DataConfig, {"builtin_size": 16}),
        (DataConfig, {"extra_std": (), "channels": 3}),
        (DataConfig, {"extra_range": (0.0, ENDLESS)}),
        (AugmentConfig, {"base_scale": (0, 0)}),
        (AugmentConfig, {"ratio_range": (0.5, ENDLESS)}),
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_name(kind: type, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert next(iter(values)) in str(caught.value)
