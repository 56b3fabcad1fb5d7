"""auto: what is faster here, measured once and kept; float32 unless another precision is clearly faster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from setr_fast.models.model import SegmentationModel
from setr_fast.precision import choose
from setr_fast.precision.prepare import prepared, used

Make = Callable[..., SegmentationModel]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return choose.cache_file()


@pytest.mark.parametrize(
    ("fp32", "bf16", "wanted"), [(1.0, 0.5, "bf16"), (1.0, 0.95, "fp32"), (1.0, 1.0, "fp32"), (0.5, 1.0, "fp32")]
)
def test_float32_stays_unless_the_other_is_clearly_faster(
    fp32: float, bf16: float, wanted: str, make_model: Make, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_timed", lambda *_: {"fp32": fp32, "bf16": bf16})
    model = make_model()
    assert prepared(model, "auto", windows).precision == wanted
    assert used(model, "auto") == {
        "asked": "auto",
        "used": wanted,
        "seconds_per_block": {"fp32": fp32, "bf16": bf16},
    }


def test_it_is_measured_once_per_machine_and_kind_of_model(
    make_model: Make, windows: Tensor, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    measure = choose._timed
    monkeypatch.setattr(choose, "_timed", lambda *a: calls.append(1) or measure(*a))
    with torch.inference_mode():
        first = choose.fastest(make_model(), windows)
        assert choose.fastest(make_model("segmenter_mask_vit_t16"), windows) == first  # the same block
        assert len(calls) == 1
        choose.fastest(make_model(width=32, num_heads=1), windows)
        choose.fastest(make_model(), windows[:1])
    assert len(calls) == 3
    assert len(json.loads(cache.read_text())) == 3


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"fp32": "x"}}', "\x00"])
def test_a_broken_cache_is_measured_again(content: str, make_model: Make, windows: Tensor, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert choose.fastest(make_model(), windows)[0] in ("fp32", "bf16")
    assert len(json.loads(cache.read_text())) == 1


def test_a_cache_that_cannot_be_written_changes_nothing(
    make_model: Make, windows: Tensor, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose.fastest(make_model(), windows)[0] in ("fp32", "bf16")
