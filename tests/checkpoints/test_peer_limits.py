"""Files of models that the code base itself cannot build: written, exact, and said to be so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import setr_fast
from setr_fast.checkpoints.convert import convert
from setr_fast.checkpoints.load import assemble
from setr_fast.checkpoints.options import ConvertConfig
from setr_fast.checkpoints.peer_limits import limits
from setr_fast.models.spec import ModelSpec
from tests.checkpoints.random_models import random_spec, random_state


def _plain(family: str, head: str) -> ModelSpec:
    """A model of the widths that every code base fixes."""
    size: dict[str, Any] = {"image_size": (32, 32), "pos_grid": (2, 2), "patch_size": 16, "stride": (21, 21)}
    size |= {"head_channels": 256, "aux_channels": 256, "branch_channels": 128, "mlp_ratio": 4.0}
    if head == "mask":
        size |= {"width": 64, "num_heads": 1, "decoder_width": 64, "decoder_num_heads": 1, "decoder_mlp_ratio": 4.0}
    return random_spec(family, head, 0).replace(**size)


@pytest.mark.parametrize(
    ("family", "head", "other", "words"),
    [
        ("setr", "pup", {"head_channels": 8}, "head_channels must be 256"),
        ("setr", "naive", {"aux_channels": 8}, "aux_channels must be 256"),
        ("setr", "mla", {"head_channels": 8}, "for its auxiliary heads"),
        ("setr", "pup", {"image_size": (32, 48), "pos_grid": (2, 3)}, "square, got 32x48"),
        ("setr", "mla", {"pos_grid": (3, 3)}, "position table must be that of 32x32"),
        ("paddleseg", "naive", {"pos_grid": (2, 3)}, "table must be square"),
        ("paddleseg", "pup", {"head_channels": 8}, "head_channels must be 256"),
        ("paddleseg", "pup", {"aux_levels": ()}, "auxiliary heads must be 4"),
        ("segmenter", "linear", {"mlp_ratio": 2.0}, "mlp_ratio must be 4"),
        ("segmenter", "mask", {"decoder_width": 128}, "decoder_width must be the encoder's 64"),
        ("segmenter", "mask", {"decoder_mlp_ratio": 2.0}, "decoder_mlp_ratio must be 4"),
    ],
)
def test_what_a_code_base_fixes_is_named(family: str, head: str, other: dict[str, Any], words: str) -> None:
    spec = _plain(family, head)
    assert limits(family, spec) == []
    (told,) = limits(family, spec.replace(**other))
    assert words in told


def test_such_a_file_is_written_and_the_certificate_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = random_spec("paddleseg", "pup", 0).replace(image_size=(32, 48), pos_grid=(2, 3), patch_size=16)
    model = assemble(spec, random_state(spec, "paddleseg"))
    model.save(tmp_path / "native")
    with caplog.at_level(logging.WARNING):
        values = convert(tmp_path / "native", tmp_path / "model.pdparams", ConvertConfig(to="paddleseg"))
    told = [record.getMessage() for record in caplog.records if "cannot build" in record.getMessage()]
    assert len(told) == 1
    assert "the position table must be square, got 2x3 patches" in told[0]
    assert "\n" not in told[0]
    assert json.loads(Path(values["certificate"]).read_text())["limits"] == values["limits"] != []
    back = setr_fast.load(tmp_path / "model.pdparams").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())
