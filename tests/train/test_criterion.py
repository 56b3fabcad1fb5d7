"""The loss that the options choose, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from setr_fast.config import Config, read_config, to_toml
from setr_fast.errors import ConfigError
from setr_fast.loss import dice_loss, focal_loss, lovasz_loss, ohem_loss
from setr_fast.models.model import create_model
from setr_fast.ops import upsample_cross_entropy
from setr_fast.train.criterion import build_criterion
from setr_fast.train.options import LossConfig

PLACE: dict[str, Any] = {"size": (16, 16), "align_corners": False, "ignore_index": 255}


@pytest.mark.parametrize("kind", ["cross_entropy", "ohem", "focal", "dice", "lovasz"])
def test_each_kind_is_its_function(kind: str) -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 16, 16))
    labels[:, 3:5] = 255
    weights = torch.tensor([1.0, 2.0, 0.5])
    options: dict[str, Any] = {"class_weights": (1.0, 2.0, 0.5), "weights": (0.5,)}
    plain = {
        "cross_entropy": (upsample_cross_entropy, {"averaging": "all", "label_smoothing": 0.1}),
        "ohem": (ohem_loss, {"averaging": "all", "threshold": 0.2, "min_kept": 20}),
        "focal": (focal_loss, {"averaging": "all", "gamma": 1.0}),
        "dice": (dice_loss, {"exponent": 2, "smooth": 0.5}),
        "lovasz": (lovasz_loss, {}),
    }
    changed = {
        "cross_entropy": {"label_smoothing": 0.1},
        "ohem": {"ohem_threshold": 0.2, "ohem_min_kept": 20},
        "focal": {"focal_gamma": 1.0},
        "dice": {"dice_exponent": 2, "dice_smooth": 0.5},
        "lovasz": {},
    }
    function, arguments = plain[kind]
    want = function(logits, labels, **PLACE, class_weights=weights, **arguments)  # type: ignore[operator]
    got = build_criterion(LossConfig(kind=(kind,), **options, **changed[kind]), 3)(  # type: ignore[arg-type]
        logits, labels, averaging="all", **PLACE
    )
    torch.testing.assert_close(got.loss, 0.5 * want.loss)
    assert got.accuracy == want.accuracy


def test_several_kinds_are_added_up() -> None:
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 16, 16))
    criterion = build_criterion(LossConfig(kind=("cross_entropy", "dice"), weights=(1.0, 3.0)), 3)
    want = upsample_cross_entropy(logits, labels, **PLACE).loss + 3 * dice_loss(logits, labels, **PLACE).loss
    torch.testing.assert_close(criterion(logits, labels, averaging="valid", **PLACE).loss, want)


def test_a_model_judges_every_head_by_it() -> None:
    model = create_model("setr_pup_vit_t16", num_classes=3, image_size=32, depth=4, taps=(0, 1, 2, 3), head_channels=8)
    image, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    plain = model.eval().loss_and_accuracy(image, labels)
    torch.testing.assert_close(plain.loss, model.loss(image, labels))
    halved = build_criterion(LossConfig(weights=(0.5,)), 3)
    torch.testing.assert_close(model.loss_and_accuracy(image, labels, halved).loss, 0.5 * plain.loss)
    assert plain.accuracy == (model(image).argmax(1) == labels).float().mean()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": ()},
        {"kind": ("dice", "dice")},
        {"weights": (1.0, 2.0)},
        {"weights": (-1.0,)},
        {"class_weights": (0.0, 0.0)},
        {"label_smoothing": 1.5},
        {"kind": ("dice",), "label_smoothing": 0.1},
        {"ohem_threshold": 0.0},
        {"ohem_min_kept": 0},
        {"focal_gamma": -1.0},
    ],
    ids=str,
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="loss"):
        LossConfig(**wrong)


def test_class_weights_must_fit_the_data() -> None:
    with pytest.raises(ConfigError, match="must be 4 numbers, one per class, got 2"):
        build_criterion(LossConfig(class_weights=(1.0, 2.0)), 4)


def test_it_is_read_from_a_file_and_written_back(tmp_path: Any) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[loss]\nkind = ["ohem", "lovasz"]\nweights = [1, 0.5]\nclass_weights = [1.0, 2]\n')
    config = read_config(path, Config())
    assert config.loss.kind == ("ohem", "lovasz")
    assert config.loss.weights == (1.0, 0.5)
    path.write_text(to_toml(config))
    assert read_config(path, Config()) == config
