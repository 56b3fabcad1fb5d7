"""The module that is exported answers as the model does, for every head and every rule that depends on the size."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.errors import ConfigError
from setr_fast.export.agreement import agreement, answer, draw_pictures, odd_sizes
from setr_fast.export.deployed import Deployed
from setr_fast.export.kernels import Kernels, kernels
from setr_fast.ops import OPS, _native

SIZES = ((1, 64, 64), (2, 45, 70), (1, 8, 9), (1, 32, 128), (3, 31, 33), (1, 101, 67))
"""Among them the table's grid, as many patches in other rows and columns, less than a patch more than a multiple."""
VARIANTS = [
    ("naive", {}),
    ("naive", {"head_scales": (4,), "head_kernel": 3, "head_align_corners": True}),
    ("pup", {}),
    ("pup", {"head_scales": (2, 2, 2, 2), "align_corners": True}),
    ("pup", {"head_scales": (2, 2, 2, 2), "resize_to": "input", "fit": "floor", "pos_resize_when": "tokens"}),
    ("mla", {}),
    ("mla", {"depth": 2, "taps": (0, 1), "deep_first": True, "shared_modules": True, "classifier_kernel": 1}),
    ("linear", {"pos_resize": "bicubic", "distilled": True}),
    ("linear", {"classes": 300, "ignore_index": 999, "pos_resize_when": "tokens"}),
    ("mask", {}),
    ("mask", {"cosine_eps": 0.0, "class_token": "drop"}),
]


@pytest.mark.parametrize(("name", "compiled"), [("portable", False), ("own", False), ("own", True)])
@pytest.mark.parametrize(("head", "changes"), VARIANTS)
def test_it_answers_as_the_model_in_one_pass(make_small, head, changes, name, compiled):
    if compiled and _native.missing("cpu"):
        pytest.skip(_native.missing("cpu"))
    model = make_small(head, **changes)
    deployed = Deployed(model, kernels(name, compiled=compiled))
    for index, size in enumerate(SIZES):
        pictures = draw_pictures(*size, seed=index)
        with torch.inference_mode():
            found = deployed(pictures)
        assert found.dtype is (torch.int16 if model.spec.num_classes > 256 else torch.uint8)
        wanted = np.stack([predict(model, picture.numpy(), InferenceConfig(mode="whole")) for picture in pictures])
        equal = (found.numpy().astype(np.int64) == wanted).mean()
        assert len(np.unique(wanted)) > 1 or min(size[1:]) < 16, "a map of one class would agree with anything"
        assert equal >= 0.9995, (size, equal)


def test_weights_are_shared_but_those_of_folded_stages(make_small):
    model = make_small("pup")
    deployed = Deployed(model, kernels("portable", compiled=False))
    own = {tensor.data_ptr() for tensor in model.parameters()}
    apart = {name for name, tensor in deployed.named_parameters() if tensor.data_ptr() not in own}
    assert apart
    assert all("stages" in name for name in apart)
    assert model.head.stages[0].bn is not None, "the model itself stays as it was"


def test_an_encoder_alone_or_other_channels_are_refused(make_small):
    for changes in ({"in_chans": 4}, {"head": "none"}):
        with pytest.raises(ConfigError, match="must have a head and take pictures of 3 channels"):
            Deployed(make_small("linear", **changes), kernels("portable", compiled=False))


def test_agreement_counts_differences_and_ties(make_small):
    model = make_small("pup")

    def exact(pictures: np.ndarray) -> np.ndarray:
        return answer(model, torch.from_numpy(pictures))[1].numpy()

    told = agreement(model, exact, 20)
    assert told["agreement"] == 1.0
    assert len(told["sizes"]) == 20
    assert told["pixels"] == sum(int(np.prod(row["size"])) for row in told["sizes"])
    assert [1, 1, 1] in [row["size"] for row in told["sizes"]]
    assert sum(size % 2 for row in told["sizes"] for size in row["size"][1:]) > 36

    def wrong(pictures: np.ndarray) -> np.ndarray:
        found = exact(pictures)
        found[0, 0, 0] = (found[0, 0, 0] + 1) % 7
        return found

    told = agreement(model, wrong, 20)
    assert told["different"] == 20
    assert told["ties"] == 0
    with torch.no_grad():  # two classes with the same logits: any answer between them is a tie
        model.head.classifier.weight[1] = model.head.classifier.weight[0]
        model.head.classifier.bias[:2] = 99.0
    told = agreement(model, lambda pictures: 1 - exact(pictures).clip(0, 1), 3)
    assert told["ties"] == told["different"] > 0
    told = agreement(model, lambda pictures: exact(pictures)[:, 1:], 1)
    assert told["agreement"] == 0.0


def test_models_of_one_size_are_compared_on_it(make_small):
    spec = make_small("linear", pos_resize="none").spec
    assert set(odd_sizes(spec, 6)) == {(1, 64, 64), (2, 64, 64)}


def test_schemas_in_c_are_those_of_the_declarations():
    text = (Path(__file__).resolve().parents[2] / "csrc/deploy/schemas.cpp").read_text()
    found = {"".join(re.findall(r'"([^"]*)"', call)) for call in re.findall(r"m\.def\((.*?)\);", text, re.DOTALL)}
    assert len(found) == 3
    assert found == {OPS[schema.split("(")[0]].schema for schema in found}
    assert {schema.split("(")[0] for schema in found} <= set(Kernels._fields)
