"""Variants of the catalog's models: what another code base has otherwise is what its own checkpoints say."""

from __future__ import annotations

import pytest
import torch

from setr_fast.checkpoints.export import export
from setr_fast.models.catalog import model_spec
from setr_fast.models.code_bases import CODE_BASES, fields_of
from setr_fast.models.options import ModelConfig
from tests.checkpoints.random_models import random_state

CASES = [(code_base, head) for code_base, heads in CODE_BASES.items() for head in heads]
SMALL = {"width": 64, "depth": 4, "num_heads": 1, "mlp_ratio": 2.0}
IN_TRAINING_ONLY = {"dropout", "drop_path", "drop_path_on", "decoder_dropout", "decoder_drop_path"}


@pytest.mark.parametrize(("code_base", "head"), CASES)
def test_a_variant_is_written_as_its_code_bases_own_without_a_change(code_base: str, head: str) -> None:
    setr = head in ("naive", "pup", "mla")
    name = f"setr_{head}_vit_s16" if setr else f"segmenter_{head}_vit_s16"
    small = {**SMALL, "taps": (0, 1, 2, 3), "head_channels": 8} if setr else SMALL
    fields = ModelConfig(name=name, code_base=code_base).overrides()  # type: ignore[arg-type]
    spec = model_spec(name, 3, 384, **{**fields, **small})
    made = export(code_base, spec, random_state(spec, code_base))
    assert made.changed == {}
    assert made.differences == {}
    assert {key: getattr(made.spec, key) for key in fields if key not in IN_TRAINING_ONLY} == {
        key: getattr(spec, key) for key in fields if key not in IN_TRAINING_ONLY
    }
    with torch.device("meta"):
        plain = model_spec(name, 3, 384, **small)
    assert plain != spec  # the field is not idle


def test_what_the_user_sets_goes_over_the_variant() -> None:
    assert ModelConfig(name="setr_naive_vit_l16", code_base="mmseg", aux_scales=(4, 4)).overrides()["aux_scales"] == (
        4,
        4,
    )
    assert fields_of("mmseg", "nothing") == {}
