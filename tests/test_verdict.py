"""``setr-fast bench``: a verdict per op, wrong backends named, unknown ops refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from setr_fast import verdict
from setr_fast.cli import main
from setr_fast.ops import OPS
from setr_fast.ops._op import REFERENCE, Backend

OP = "confusion_matrix"


def _verdict(**speeds: float) -> verdict.Verdict:
    return verdict.Verdict("x", "c", "float32", "native", speeds, {})


def test_another_backend_is_recommended_only_where_it_is_clearly_faster() -> None:
    assert _verdict(native=2.0, library=2.05, reference=1.0).best == "native"
    faster = _verdict(native=2.0, library=2.2, reference=1.0)
    assert faster.best == "library"
    assert "SETR_FAST_BACKEND=x=library" in faster.line()
    assert "native* 2.00x" in faster.line()


def test_every_op_with_a_realistic_case_gets_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verdict.WORK, "cpu", 2e8)
    found = {v.op: v for v in verdict.bench(seconds=0.0)}
    assert {"confusion_matrix", "upsample_argmax", "patch_embed_rows"} <= found.keys()
    for one in found.values():
        assert not one.wrong
        assert one.speeds[REFERENCE] == 1.0
        assert one.used in one.speeds


def test_a_wrong_backend_is_named_and_not_recommended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def zeros(*args: Any) -> torch.Tensor:
        return torch.zeros_like(OPS[OP].reference(*args))

    planted = Backend("planted", lambda name: zeros, "cpu")
    monkeypatch.setitem(OPS, OP, dataclasses.replace(OPS[OP], backends=(planted, *OPS[OP].backends)))
    assert main(["bench", OP, "--seconds", "0"]) == 4
    line = capsys.readouterr().out
    assert "planted WRONG (differs from the reference)" in line
    assert "planted*" not in line


def test_an_unknown_op_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attenton"]) == 2
    assert "got attenton" in capsys.readouterr().err
