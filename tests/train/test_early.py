"""Options that validation or a batch norm cannot work with end a run before it begins, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from setr_fast.config import Config
from setr_fast.data.options import AugmentConfig
from setr_fast.engine.options import InferenceConfig
from setr_fast.errors import ConfigError
from setr_fast.train.launch import run

Make = Callable[..., Config]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inference": InferenceConfig(mode="slide", stride=(64, 64))}, "stride must be 1 to the window's size of 32"),
        ({"inference": InferenceConfig(crop=(16, 16), stride=(17, 4))}, "stride must be 1 to the window's size of 16"),
        ({"inference": InferenceConfig(precision="fp8")}, "fp8 must run on a GPU, got cpu"),
        ({"augment": AugmentConfig(crop=(8, 8))}, "batch norms must see two values per channel or more, got one"),
    ],
)
def test_what_would_fail_later_is_said_before_the_first_step(tiny: Make, changes: dict[str, Any], told: str) -> None:
    config = replace(tiny(batch_size=2, accumulate=2), **changes)
    with pytest.raises(ConfigError) as caught:
        run(config, [])
    assert told in str(caught.value)
    assert config.run_dir is not None
    assert not config.run_dir.exists()


def test_two_pictures_of_one_patch_are_enough(tiny: Make) -> None:
    config = replace(tiny(batch_size=2, steps=1, validate_every=1), augment=AugmentConfig(crop=(8, 8)))
    assert run(config, []) == 0
