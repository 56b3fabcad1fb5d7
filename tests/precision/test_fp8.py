"""float8 layers, computed on a CPU: row-wise scales, the report, and what stays in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from setr_fast.errors import ConfigError
from setr_fast.models.model import SegmentationModel
from setr_fast.precision.linears import Fp8Linear, HalfLinear, _to_fp8
from setr_fast.precision.prepare import _odd_width, prepared
from setr_fast.precision.rounding import fp8_model

Make = Callable[..., SegmentationModel]


def _multiplies_rowwise() -> bool:
    layer = Fp8Linear(nn.Linear(16, 16))
    try:
        layer(torch.zeros(16, 16))
    except RuntimeError as error:
        if "per-tensor scaling" in str(error):
            return False
        raise
    return True


rowwise = pytest.mark.skipif(
    not _multiplies_rowwise(), reason="this torch multiplies float8 on a CPU with one scale only"
)


@rowwise
def test_a_row_a_thousand_times_larger_costs_the_others_nothing() -> None:
    layer = nn.Linear(64, 32)
    x = torch.randn(3, 5, 64)
    x[1, 2] *= 1000
    y, truth = Fp8Linear(layer)(x).double(), layer(x).double()
    error = (y - truth).norm(dim=-1) / truth.norm(dim=-1)
    assert error.max() < 0.06  # three bits behind the first: an eighth of a step, averaged over the sum
    onto = torch.ones(3, 5, 32)
    torch.testing.assert_close(Fp8Linear(layer)(x, onto=onto).double(), y + 1)
    gelu = Fp8Linear(layer)(x, gelu=True).double()
    torch.testing.assert_close(gelu, torch.nn.functional.gelu(y), atol=0.02, rtol=0.02)


@rowwise
def test_what_is_zero_stays_zero() -> None:
    layer = nn.Linear(32, 16, bias=False)
    assert torch.equal(Fp8Linear(layer)(torch.zeros(2, 32)), torch.zeros(2, 16, dtype=torch.bfloat16))


@rowwise
def test_the_report_names_every_layer_and_the_worst_go_back_to_bfloat16(make_model: Make, windows: Tensor) -> None:
    model = make_model()
    with torch.no_grad():
        plain = model.logits(windows)
        rounded, report = fp8_model(model, windows, goal=0.0)
        wider, back = fp8_model(model, windows, goal=1.1)
        assert (rounded.logits(windows) - plain).norm() < 0.2 * plain.norm()
        assert (wider.logits(windows) - plain).norm() < 0.05 * plain.norm()
    assert len(report.layers) == 8
    assert all(18 < layer.sqnr_db < 40 for layer in report.layers), report.layers
    assert report.kept_float == []
    assert len(back.kept_float) == 8
    assert sum(isinstance(m, Fp8Linear) for m in rounded.modules()) == 8
    assert sum(isinstance(m, HalfLinear) for m in wider.modules()) == 8


def test_rows_fill_the_format_and_the_largest_of_sixteen_bits_is_taken_as_it_is() -> None:
    rows = torch.randn(64, 48).bfloat16() * torch.logspace(-20, 20, 64)[:, None].bfloat16()
    eight, scale = _to_fp8(rows)
    known = rows.float()
    assert torch.equal(scale, (known.abs().amax(1, keepdim=True) / 448).clamp_min(1e-12))
    assert torch.equal(eight.float(), (known / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float())
    assert (eight.float().abs().amax(1) == 448)[20:].all()


def test_widths_that_a_card_cannot_multiply_are_found(make_model: Make) -> None:
    assert _odd_width(make_model()) is None
    assert _odd_width(make_model(width=40)) == 120  # queries, keys and values together


def test_a_cpu_is_refused(make_model: Make, windows: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"fp8 must run on a card of capability 8\.9 or newer, got cpu"):
        prepared(make_model(), "fp8", windows)


@pytest.mark.gpu
def test_a_card_gives_the_classes_of_bfloat16(make_model: Make, windows: Tensor) -> None:
    model, pictures = make_model().cuda(), windows.cuda()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        half = prepared(model, "bf16", pictures).model.logits(pictures)  # type: ignore[operator]
        eight = prepared(model, "fp8", pictures).model.logits(pictures)  # type: ignore[operator]
    assert (half.argmax(1) == eight.argmax(1)).double().mean() > 0.9
