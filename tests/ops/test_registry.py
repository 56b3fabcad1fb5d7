"""What every declared op must hold, generated from the registry: parity, registration, gradients, refusals."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import setr_fast
from setr_fast.errors import BackendError
from setr_fast.ops import OPS
from setr_fast.ops._op import FULL, REFERENCE, Backend, Case, Draw, Op, ShapesOnly

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
CASES = [(op, case) for op in OPS.values() for case in op.cases()]
SMALL = [(op, case) for op, case in CASES if not case.bench]

exercised: set[tuple[str, str]] = set()


def _name(value: Any) -> str:
    return value.name if isinstance(value, Op | Case | Backend) else str(value)


def _floating(op: Op, case: Case) -> bool:
    return (
        any(isinstance(a, Tensor) and a.is_floating_point() and a.requires_grad is False for a in case.make(Draw.on()))
        and op.rounds
    )


def _outputs(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple | list) else [value]


@functools.lru_cache(maxsize=1)  # of large cases, where it counts, backends follow each other in one dtype
def _truth(name: str, case: Case, device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return the reference's outputs in float64 and in the case's own precision."""
    op, args = OPS[name], case.make(Draw.on(device, dtype))
    return _outputs(op.reference(*(_double(a) for a in args))), _outputs(op.reference(*args))


def _marks(backend: Backend, case: Case, device: str) -> list[pytest.MarkDecorator]:
    """A card's large cases are held to the truth where benchmarks/ times them, a processor's largest are slow.

    So are those of what serves where no kernel does. Of a card's small ones, those run that are compiled ahead or go by
    PyTorch's ops: what Triton compiles has files of its own.
    """
    if device == "cpu":
        return [pytest.mark.slow] if case.bench == FULL or (case.bench and backend.name.startswith("by_")) else []
    late = case.bench or not backend.name.startswith(("native", "by_"))
    return [pytest.mark.gpu, *([pytest.mark.slow] if late else [])]


def _pairs() -> list[Any]:
    return [
        pytest.param(
            op,
            backend,
            case,
            device,
            id=f"{op.name}-{backend.name}-{device}-{case.name}",
            marks=_marks(backend, case, device),
        )
        for op, case in CASES
        for backend in op.backends
        for device in DEVICES
        if backend.device in (None, device)
    ]


@pytest.mark.parametrize(("op", "backend", "case", "device"), _pairs())
def test_backend_agrees_with_the_float64_reference(op: Op, backend: Backend, case: Case, device: str) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16] if _floating(op, case) else [torch.float32]
    refused, served = [], False
    for dtype in dtypes:
        if served and case.bench:
            break  # large: one dtype here, the others on the tensors that benchmarks/ times
        args = case.make(Draw.on(device, dtype))
        reasons = op.refusals(backend, *args)
        if reasons:
            assert all(isinstance(r, str) and len(r) > 10 for r in reasons), "a refusal must say why"
            refused += reasons
            continue
        exact, plain = _truth(op.name, case, device, dtype)
        ours = _outputs(op.run(backend.name, *args))
        exercised.add((op.name, backend.name))
        served = True
        assert len(ours) == len(plain)
        for truth, reference, got in zip(exact, plain, ours, strict=True):
            assert got.dtype == reference.dtype
            assert got.shape == reference.shape
            assert got.device == reference.device
            if not got.is_floating_point() or not op.rounds:
                assert torch.equal(got, reference), "integer results and table look-ups are exact"
                continue
            allowed = backend.error_factor * (reference.double() - truth).abs().max() + torch.finfo(dtype).tiny
            worst = (got.double() - truth).abs().max()
            assert worst <= allowed + torch.finfo(dtype).eps * truth.abs().max(), f"{dtype}: {worst} > {allowed}"
    if not served:
        pytest.skip(f"{op.name}/{backend.name} refuses: {'; '.join(dict.fromkeys(refused))}")


@pytest.mark.parametrize(("op", "case"), [pytest.param(o, c, id=f"{o.name}-{c.name}") for o, c in SMALL])
def test_registration_passes_opcheck(op: Op, case: Case) -> None:
    torch.library.opcheck(getattr(torch.ops.setr_fast, op.name).default, case.make(Draw.on()))


@pytest.mark.parametrize(
    ("op", "case"),
    [pytest.param(o, c, id=f"{o.name}-{c.name}") for o, c in SMALL if o.differentiable]
    or [pytest.param(None, None, id="none-yet")],
)
def test_gradient_equals_autograd_of_the_reference(op: Op | None, case: Case | None) -> None:
    if op is None or case is None:
        assert not any(o.differentiable for o in OPS.values())
        return
    args = [_leaf(a) for a in case.make(Draw.on(dtype=torch.float64))]
    twins = [_leaf(a) for a in args]
    ours, reference = _outputs(op(*args))[0], _outputs(op.reference(*twins))[0]
    seed = torch.randn_like(reference)
    ours.backward(seed)
    reference.backward(seed)
    for a, b in zip(args, twins, strict=True):
        if isinstance(a, Tensor) and a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("op", OPS.values(), ids=_name)
def test_same_answer_through_torch_and_forced_reference(op: Op) -> None:
    case = next(iter(op.cases()))
    args = case.make(Draw.on())
    with setr_fast.backend("reference"):
        assert op.choose(*args) == REFERENCE
        plain = _outputs(op(*args))
    for a, b in zip(_outputs(op(*args)), plain, strict=True):
        if op.rounds:
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS.values(), ids=_name)
def test_a_forced_backend_that_cannot_serve_raises_with_its_reasons(op: Op) -> None:
    for backend in op.backends:
        args = next(iter(op.cases())).make(Draw.on("meta"))
        if not any(isinstance(a, Tensor) for a in args) or backend.device is None:
            continue
        with pytest.raises(BackendError, match="takes tensors on"):
            op.run(backend.name, *args)


def test_unknown_backend_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(BackendError, match=r"reference.*got warp"), setr_fast.backend("warp"):
        pass


def test_cost_and_cases_are_there_for_every_op() -> None:
    for op in OPS.values():
        cases = list(op.cases())
        assert any(c.bench for c in cases), f"{op.name}: no case to time"
        assert any(not c.bench for c in cases), f"{op.name}: no small case"
        for case in cases:
            args = case.make(ShapesOnly.on("meta"))
            cost = op.cost(*args)
            assert cost.bytes > 0 or not any(a.numel() for a in args if isinstance(a, Tensor))
            assert cost.flops >= 0


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_(True)
    return value
