"""Rows of SETR-PUP's decoder (1024 channels in, 32x32 tokens, 150 classes) against the plain order of its operations.

The baseline is the better of PyTorch's two memory layouts, on the same weights. Parity is asserted on what is timed:
the error against float64 is at most twice the baseline's own. Peak memory is that of a fresh process per side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import ROOT, interleaved, quantiles, ratio
from setr_fast.models.catalog import model_spec
from setr_fast.models.heads.pup import pup_head
from setr_fast.models.heads.upsampling import UpsamplingHead
from setr_fast.nn.embed import tokens_to_map
from setr_fast.shapes import Grid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID = Grid.covering((512, 512), 16)
BATCH = 16 if DEVICE == "cuda" else 1
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.full)]
SIDES = ("ours", "default", "channels_last")


def decoder(dtype: torch.dtype) -> UpsamplingHead:
    """Return the head with statistics of a trained one: no channel dead, none exploding."""
    torch.manual_seed(0)
    head = pup_head(model_spec("setr_pup_vit_l16", 150, 512))
    for stage in head.stages:
        stage.bn.running_var.fill_(0.05)  # about what a convolution with PyTorch's first weights gives
    return head.to(DEVICE, dtype)


def plain(head: UpsamplingHead, layout: torch.memory_format, tokens_BND: Tensor, grid: Grid) -> Tensor:
    """Convolution, batch norm, ReLU, upsampling; the classifier before the last one, as published."""
    x = tokens_to_map(head.norm(tokens_BND), grid).contiguous(memory_format=layout)
    for stage, scale in zip(head.stages, head.scales, strict=True):
        x = F.relu(stage.bn(stage.conv(x)), inplace=True)
        if scale > 1:
            x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    return head.classifier(x)


def side(name: str, head: UpsamplingHead) -> Callable[[Tensor, Grid], Tensor]:
    """Return one side as a function of tokens and grid; it may change the layout of the weights."""
    if name == "ours":
        return lambda tokens, grid: head((tokens,), grid)
    layout = torch.channels_last if name == "channels_last" else torch.contiguous_format
    head.to(memory_format=layout)
    return lambda tokens, grid: plain(head, layout, tokens, grid)


def tokens(dtype: torch.dtype, grid: Grid = GRID) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(BATCH, grid.tokens, 1024).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_inference(dtype: torch.dtype, benchmark: Any, record: Callable[[dict[str, Any]], None]) -> None:
    x = tokens(dtype)
    runs = {name: side(name, decoder(dtype).eval()) for name in SIDES}
    with torch.inference_mode():
        exact = side("default", decoder(dtype).double().eval())(x.double(), GRID)
        _check({name: [run(x, GRID)] for name, run in runs.items()}, [exact])
        times = interleaved({n: lambda r=run: r(x, GRID) for n, run in runs.items()}, rounds=9, seconds=15)
        benchmark.pedantic(runs["ours"], args=(x, GRID), rounds=3)
    _record("inference", dtype, times, benchmark, record)


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_training(dtype: torch.dtype, benchmark: Any, record: Callable[[dict[str, Any]], None]) -> None:
    """Batch statistics; one row for forward and backward, one for the backward alone."""
    x = tokens(dtype).requires_grad_()
    heads = {name: decoder(dtype).train() for name in SIDES}
    runs = {name: side(name, head) for name, head in heads.items()}
    pull = torch.randn(BATCH, 150, 256, 256, device=DEVICE).to(dtype)

    def step(run: Callable[[Tensor, Grid], Tensor], head: UpsamplingHead) -> list[Tensor]:
        y = run(x, GRID)
        return [y.detach(), *torch.autograd.grad(y, [x, *_weights(head)], pull)]

    truth = decoder(dtype).double().train()
    x64 = x.detach().double().requires_grad_()
    y64 = side("default", truth)(x64, GRID)
    exact = [y64.detach(), *torch.autograd.grad(y64, [x64, *_weights(truth)], pull.double())]
    _check({name: step(run, heads[name]) for name, run in runs.items()}, exact)
    times = interleaved({n: lambda n=n, r=r: step(r, heads[n]) for n, r in runs.items()}, rounds=5, seconds=15)
    _record("forward and backward", dtype, times, benchmark, record)
    graphs = {name: run(x, GRID) for name, run in runs.items()}

    def backward(name: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(graphs[name], [x, *_weights(heads[name])], pull, retain_graph=True)

    times = interleaved({n: lambda n=n: backward(n) for n in SIDES}, rounds=5, seconds=15)
    benchmark.pedantic(backward, args=("ours",), rounds=2)
    _record("backward", dtype, times, benchmark, record)


def _weights(head: UpsamplingHead) -> list[Tensor]:
    """Parameters whose gradient batch statistics do not cancel."""
    return [p for n, p in head.named_parameters() if not n.endswith("conv.bias")]


def _check(results: dict[str, list[Tensor]], exact: list[Tensor]) -> None:
    for index, truth in enumerate(exact):
        error = {name: (values[index].double() - truth).abs().max() for name, values in results.items()}
        floor = torch.finfo(results["ours"][index].dtype).eps * truth.abs().max()
        assert error["ours"] <= 2 * max(error["default"], error["channels_last"]) + floor, (index, error)


def _record(
    what: str,
    dtype: torch.dtype,
    times: dict[str, list[float]],
    benchmark: Any,
    record: Callable[[dict[str, Any]], None],
) -> None:
    better = min(SIDES[1:], key=lambda name: quantiles(times[name])["median"])
    speed = ratio(times[better], times["ours"])
    memory = {name: peak_extra_bytes(name, dtype, what) for name in SIDES} if DEVICE == "cpu" else {}
    benchmark.extra_info.update(
        {f"{what} ratio": speed["median"], **{f"{what} {n} bytes": m for n, m in memory.items()}}
    )
    record(
        {
            "kind": "op",
            "op": "upsample_conv",
            "case": f"PUP decoder, {what}, {str(dtype)[6:]}",
            "backend": "native",
            "baseline": f"eager, {better}",
            "seconds": quantiles(times["ours"]),
            "baseline_seconds": quantiles(times[better]),
            "ratio": speed,
            "seconds_by_side": {name: quantiles(times[name]) for name in SIDES},
            "peak_extra_bytes": memory,
        }
    )


def peak_extra_bytes(name: str, dtype: torch.dtype, what: str) -> int:
    """Measure how far one pass of one side lifts a fresh process above weights and tokens."""
    command = [sys.executable, "-m", "benchmarks.test_decoder", name, str(dtype)[6:], what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


def _measure(name: str, dtype: torch.dtype, what: str) -> int:
    head = decoder(dtype).train(what != "inference")
    run, x = side(name, head), tokens(dtype)
    small = Grid.covering((64, 64), 16)

    def once(x_BND: Tensor, grid: Grid) -> None:
        if what == "inference":
            with torch.inference_mode():
                run(x_BND, grid)
        else:
            y = run(x_BND.requires_grad_(), grid)
            torch.autograd.grad(y, [x_BND, *_weights(head)], torch.ones_like(y))

    once(tokens(dtype, small), small)  # what the libraries keep for good
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forgets the peak so far
    before = _status("VmRSS")
    once(x, GRID)
    return _status("VmHWM") - before


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3])))
