"""Triton kernels beside attention's on a CUDA device: exact, repeatable, as declared, captured in CUDA graphs."""

from __future__ import annotations

import pytest
import torch

import setr_fast
from setr_fast.ops import OPS
from setr_fast.ops._op import Backend, Case, Draw, Op
from tests.kernels.imagined import compiling_only
from tests.ops import test_registry as generated
from tests.ops.captured import assert_captured, outputs_of

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SERVED = [
    (op, backend, case)
    for op in OPS.values()
    for backend in op.backends
    for case in op.cases()
    if backend.name == "triton" and not op.name.startswith("attention") and not case.bench
]
NAMES = [f"{op.name}-{case.name}" for op, _, case in SERVED]
FIRST = {op.name: case for op, _, case in reversed(SERVED) if case.name not in ("one_low_pixel", "one_value")}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Compile all kernels side by side."""
    with compiling_only(forgiving=True):
        for op, _, case in SERVED:
            for dtype in DTYPES:
                op.run("triton", *case.make(Draw.on(DEVICE, dtype)))


@pytest.mark.parametrize(("op", "backend", "case"), SERVED, ids=NAMES)
def test_the_kernel_agrees_with_the_float64_reference(op: Op, backend: Backend, case: Case) -> None:
    generated.test_backend_agrees_with_the_float64_reference(op, backend, case, DEVICE)


@pytest.mark.parametrize("name", sorted(FIRST))
def test_shapes_dtypes_and_strides_are_those_that_are_promised(name: str) -> None:
    with setr_fast.backend("triton"):
        torch.library.opcheck(
            getattr(torch.ops.setr_fast, name).default,
            FIRST[name].make(Draw.on(DEVICE)),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("name", sorted(FIRST))
def test_two_runs_give_the_same_bits_and_so_does_a_captured_graph(name: str) -> None:
    op = OPS[name]
    args, other = (FIRST[name].make(Draw.on(DEVICE, seed=seed)) for seed in (0, 1))
    first = outputs_of(op.run("triton", *args))
    assert all(map(torch.equal, first, outputs_of(op.run("triton", *args))))
    captured = assert_captured(op, "triton", args, other)
    assert not all(map(torch.equal, captured, first))


def test_a_training_loss_is_that_of_plain_pytorch_and_needs_no_full_size_memory() -> None:
    """150 classes, 32x32 to 512x512, four pictures: one copy of the full-size logits would be 629 MB."""
    draw = Draw.on(DEVICE, torch.bfloat16)
    low = draw(4, 150, 32, 32).requires_grad_()
    labels = draw.integers(0, 150, (4, 512, 512), torch.uint8)
    with setr_fast.backend("upsample_cross_entropy=triton"):
        loss = setr_fast.ops.upsample_cross_entropy(low, labels, (512, 512)).loss  # compiles, fills caches
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = setr_fast.ops.upsample_cross_entropy(low, labels, (512, 512)).loss
        loss.backward()
        assert torch.cuda.max_memory_allocated() - before < 64 * 2**20
    exact = low.detach().double().requires_grad_()
    full = torch.nn.functional.interpolate(exact, size=(512, 512), mode="bilinear")
    want = torch.nn.functional.cross_entropy(full, labels.long())
    want.backward()
    assert low.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0.0)
    assert (low.grad.double() - exact.grad).abs().max() <= 2**-7 * exact.grad.abs().max()


def test_a_label_that_is_no_class_is_an_error() -> None:
    low, labels = torch.zeros(1, 5, 2, 2, device=DEVICE), torch.full((1, 8, 8), 5, device=DEVICE)
    with setr_fast.backend("upsample_cross_entropy=triton"), pytest.raises(ValueError, match="must be 0 to 4"):
        setr_fast.ops.upsample_cross_entropy(low, labels, (8, 8))
