"""Amounts of memory as people write them, and what they decide."""

from __future__ import annotations

import re

import numpy as np
import pytest

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.engine.runner import MOST_WINDOWS, Runner
from setr_fast.engine.sizes import parse_bytes
from setr_fast.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 * 2**30),
        ("800MB", 800 * 10**6),
        ("2G", 2 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("512", 512),
        ("1 tib", 2**40),
        ("64kib", 2**16),
        ("7B", 7),
    ],
)
def test_amounts_are_read_with_and_without_binary_units(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "4 gibibytes", "-1GB", "0.2", "1e9", "4GiBB", "inf"])
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"memory_budget: must be an amount of memory like 4GiB or 800MB"):
        InferenceConfig(memory_budget=text)


def test_a_larger_budget_lets_more_windows_go_together(make_model):
    model = make_model(image_size=(512, 512), patch_size=4)
    batches = [Runner(model, InferenceConfig(memory_budget=text)).batch_of((512, 512)) for text in ("1MB", "1TB")]
    assert batches == [1, MOST_WINDOWS]
    middle = Runner(model, InferenceConfig(memory_budget="1GiB")).batch_of((512, 512))
    assert 1 < middle < MOST_WINDOWS


def test_old_spellings_still_decide(make_model):
    runner = Runner(make_model(), InferenceConfig(window_batch=3, canvas_mib=8))
    assert runner.batch_of((32, 32)) == 3
    for name in ("window_batch", "canvas_mib"):
        with pytest.raises(ConfigError, match=f"{name}: must be positive"):
            InferenceConfig(**{name: 0})


def test_pictures_that_are_held_leave_less_room_for_windows(make_model):
    runner = Runner(make_model(image_size=(512, 512), patch_size=4), InferenceConfig(memory_budget="1GiB"))
    assert runner.batch_of((512, 512), held=2**29) < runner.batch_of((512, 512))
    assert runner.batch_of((512, 512), held=2**30) == 1


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (0.5, 1.0), "mode": "slide"}, {"mode": "whole"}])
def test_a_budget_too_small_for_a_window_names_the_least_which_is_enough(make_model, options):
    model, picture = make_model(), np.zeros((100, 300, 3), np.uint8)
    with pytest.raises(
        ConfigError, match=r"memory_budget: must be at least \d+MiB for a picture of 100x300"
    ) as refused:
        predict(model, picture, InferenceConfig(memory_budget="1MB", **options))
    assert "\n" not in str(refused.value)
    least = int(re.search(r"(\d+)MiB", str(refused.value))[1])
    assert predict(model, picture, InferenceConfig(memory_budget=f"{least}MiB", **options)).shape == (100, 300)
    with pytest.raises(ConfigError, match=r"must be at least"):
        predict(model, picture, InferenceConfig(memory_budget=f"{least - 2}MiB", **options))
