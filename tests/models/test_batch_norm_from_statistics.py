"""Batch norm from statistics that came with the map: the module's own results, gradients and running statistics."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.nn import conv as stages
from setr_fast.nn.batch_norm import SyncedBatchNorm
from setr_fast.nn.batch_norm_statistics import batch_norm
from setr_fast.nn.conv import ConvStage
from tests.train import processes


def _trained(stage: ConvStage, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return result, gradients and running statistics of two steps."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        y = stage(x, (10, 14), True)
        y.backward(grad)
    assert x.grad is not None
    return [y, x.grad, *(p.grad for p in stage.parameters() if p.grad is not None), *stage.buffers()]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("bias", [True, False])
def test_a_stage_trains_as_with_the_module(bias: bool, momentum: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ConvStage(5, 6, 3, bias=bias, eps=1e-5).double()
    nn.init.normal_(stage.bn.weight)
    stage.bn.momentum = momentum
    twin = copy.deepcopy(stage)
    x, grad = torch.randn(3, 5, 5, 7, dtype=torch.float64) + 100, torch.randn(3, 6, 10, 14, dtype=torch.float64)
    want = _trained(twin, x, grad)
    calls = []

    real = ops.upsample_conv_statistics

    def counted(*args: object, **options: object) -> object:
        calls.append(1)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "counts_statistics", lambda *_: True)
    monkeypatch.setattr(stages.ops, "upsample_conv_statistics", counted, raising=True)
    got = _trained(stage, x, grad)
    assert len(calls) == 2
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_statistics_of_two_processes_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Two ranks with different numbers of pictures, against BatchNorm2d on all of them in one process."""
    norm, y, grad = nn.BatchNorm2d(4), torch.randn(5, 4, 3, 2) + 10, torch.randn(5, 4, 3, 2)
    nn.init.normal_(norm.weight)
    torch.save((norm.state_dict(), y, grad), tmp_path / "given.pt")
    y.requires_grad_()
    want = norm(y)
    want.backward(grad)
    port = processes.free_port()
    ranks = [processes._CONTEXT.Process(target=_rank, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    assert processes.wait(ranks) == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([p["out"] for p in parts]), want)
    torch.testing.assert_close(torch.cat([p["dy"] for p in parts]), y.grad, rtol=1e-4, atol=1e-5)
    for name, theirs in (("weight", norm.weight.grad), ("bias", norm.bias.grad)):
        torch.testing.assert_close(parts[0][name] + parts[1][name], theirs)
    for part in parts:
        torch.testing.assert_close(part["running"], [norm.running_mean, norm.running_var, norm.num_batches_tracked])


def _rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    state, y, grad = torch.load(folder / "given.pt")
    norm, part = SyncedBatchNorm(4), slice(0, 2) if rank == 0 else slice(2, 5)
    norm.load_state_dict(state)
    y, grad = y[part].requires_grad_(), grad[part]
    mean = y.detach().mean((0, 2, 3))
    out = batch_norm(y, mean, (y.detach() - mean[:, None, None]).square().sum((0, 2, 3)), norm)
    out.backward(grad)
    running = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    got = {"out": out.detach(), "dy": y.grad, "weight": norm.weight.grad, "bias": norm.bias.grad, "running": running}
    torch.save(got, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_statistics_are_not_counted_unless_a_kernel_does() -> None:
    stage = ConvStage(5, 6, 3, bias=False, eps=1e-5)
    assert not stages.counts_statistics(torch.randn(1, 5, 4, 4), stage.conv, stage.bn, (8, 8), False)
