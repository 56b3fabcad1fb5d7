"""The frame itself: a declared op differentiates and dispatches, and the generated tests catch a wrong backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import setr_fast
from setr_fast.errors import BackendError
from setr_fast.ops import OPS, _adopted
from setr_fast.ops._op import Backend, Case, Cost, Draw, Op, declare_op
from tests.ops import test_registry as generated


def _reference(x: Tensor, factor: float) -> Tensor:
    return (x.exp() * factor).to(x.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return grad * ctx.saved_tensors[0], None


def _missing(name: str) -> Any:
    raise BackendError("the warp drive is not compiled")


def _backend(name: str, function: Any, **facts: Any) -> Backend:
    return Backend(name, lambda op_name: function, **facts)


BACKENDS = (
    Backend("absent", _missing),
    _backend("untried", _reference, untried=True),
    _backend(
        "small_only", _reference, accepts=lambda x, f: ["takes up to four values, got more"] if x.numel() > 4 else []
    ),
    _backend("double_only", _reference, dtypes=frozenset({torch.float64})),
    _backend("wrong", lambda x, factor: _reference(x, factor * 1.01)),
    _backend("wrong_dtype", lambda x, factor: _reference(x, factor).double()),
    _backend("right", _reference),
)


@pytest.fixture(scope="module")
def op() -> Iterator[Op]:
    yield declare_op(
        "scaled_exp_for_tests(Tensor x, float factor) -> Tensor",
        reference=_reference,
        fake=lambda x, factor: torch.empty_like(x),
        save=_save,
        backward=_backward,
        cases=lambda: [
            Case("small", lambda draw: (draw(3, 5), 2.0)),
            Case("large", lambda draw: (draw(64, 64), 2.0), bench=True),
        ],
        cost=lambda x, factor: Cost(bytes=2 * x.nbytes, flops=2 * x.numel()),
        backends=BACKENDS,
    )
    del OPS["scaled_exp_for_tests"]


def _case(op: Op) -> Case:
    return next(iter(op.cases()))


def _named(name: str) -> Backend:
    return next(b for b in BACKENDS if b.name == name)


@pytest.mark.parametrize("name", ["wrong", "wrong_dtype"])
def test_the_generated_parity_test_fails_on_a_wrong_backend(op: Op, name: str) -> None:
    with pytest.raises(AssertionError):
        generated.test_backend_agrees_with_the_float64_reference(op, _named(name), _case(op), "cpu")


def test_the_generated_tests_pass_on_a_right_backend(op: Op) -> None:
    generated.test_backend_agrees_with_the_float64_reference(op, _named("right"), _case(op), "cpu")
    generated.test_registration_passes_opcheck(op, _case(op))
    generated.test_gradient_equals_autograd_of_the_reference(op, _case(op))


def test_the_generated_gradient_test_fails_on_a_wrong_gradient(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "reference", lambda x, factor: _reference(x, factor) + 0.1 * x)
    with pytest.raises(AssertionError):
        generated.test_gradient_equals_autograd_of_the_reference(op, _case(op))


def test_choice_skips_what_refuses_and_says_why(op: Op) -> None:
    args = _case(op).make(Draw.on())
    assert op.refusals(_named("absent"), *args) == ["the warp drive is not compiled"]
    assert op.refusals(_named("small_only"), *args) == ["takes up to four values, got more"]
    assert op.refusals(_named("double_only"), *args) == ["takes float64, got float32"]
    assert op.choose(*args) == "wrong", "the first that has no reason against it"
    assert op.choose(torch.zeros(2), 1.0) == "small_only"


def test_what_has_never_run_on_its_hardware_serves_only_by_name(op: Op) -> None:
    args = _case(op).make(Draw.on())
    assert op.refusals(_named("untried"), *args) == []
    assert op.choose(*args) == "wrong", "the next one without a reason against it"
    with setr_fast.backend(f"{op.name}=untried"):
        assert op.choose(*args) == "untried"
        assert torch.equal(op(*args), _reference(*args))


def test_what_has_never_run_comes_first_only_while_it_is_measured(op: Op) -> None:
    args = _case(op).make(Draw.on())
    for _ in range(2):  # a choice that is remembered belongs to its mode
        assert not torch.equal(op(*args), _reference(*args))
        with _adopted.untried_first():
            assert op.choose(*args) == "untried"
            assert torch.equal(op(*args), _reference(*args))


def test_every_cuda_backend_of_ours_waits_for_results_of_a_card() -> None:
    ours = [b for op in OPS.values() for b in op.backends if b.device == "cuda" and b.name in ("native", "triton")]
    assert len(ours) >= 8
    assert all(b.untried and "SETR_FAST_BACKEND" in b.note for b in ours)


def test_a_choice_is_remembered_by_shape_and_dtype_and_forcing_goes_before_it(op: Op) -> None:
    small, large = torch.zeros(2), torch.zeros(3, 5)
    with setr_fast.backend(f"{op.name}=right"):
        assert torch.equal(op(large, 2.0), _reference(large, 2.0))
    for _ in range(2):  # the first that takes fifteen values is "wrong", by one percent
        assert torch.equal(op(small, 2.0), _reference(small, 2.0))
        assert not torch.equal(op(large, 2.0), _reference(large, 2.0))
        assert torch.equal(op(large.double(), 2.0), _reference(large.double(), 2.0))


def test_forcing_one_op_leaves_the_others_alone_and_never_falls_back(op: Op) -> None:
    args = _case(op).make(Draw.on())
    with setr_fast.backend(f"{op.name}=right"):
        assert torch.equal(op(*args), _reference(*args))
    with setr_fast.backend(f"{op.name}=small_only"), pytest.raises(BackendError, match="up to four values"):
        op(*args)
    with setr_fast.backend("reference"):
        assert torch.equal(op(*args), _reference(*args))


def test_the_environment_variable_forces_and_is_checked() -> None:
    """Each value in a fork of one process that has torch, and not yet this package."""
    code = """
import os, sys, torch
for value in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        os.dup2(1, 2)
        os.environ["SETR_FAST_BACKEND"] = value
        print("value", value, flush=True)
        import setr_fast
        z = torch.zeros(1, dtype=torch.uint8)
        print(setr_fast.ops.OPS["confusion_matrix"].choose(z, z, 2, 255))
        sys.exit()
    os.wait()
"""
    expected = {
        "reference": "reference",
        "confusion_matrix=reference": "reference",
        "warp": "must name",
        "nop=reference": "no op nop",
    }
    done = subprocess.run([sys.executable, "-c", code, *expected], capture_output=True, text=True)
    said = dict(text.split("\n", 1) for text in done.stdout.split("value ")[1:])
    assert said.keys() == expected.keys(), done.stderr
    for value, text in expected.items():
        assert text in said[value], value


def test_torch_compile_sees_one_op_without_a_graph_break(op: Op) -> None:
    with setr_fast.backend(f"{op.name}=right"):
        compiled = torch.compile(lambda x: op(x, 2.0) + 1, backend="eager", fullgraph=True)
        x = torch.randn(4, 4)
        torch.testing.assert_close(compiled(x), _reference(x, 2.0) + 1)
