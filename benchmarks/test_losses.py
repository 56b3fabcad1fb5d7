"""Rows of the losses without full-size logits against the same written plainly, eager, on full-size logits.

Forward and backward, logits at a fourth of the labels' size. Parity is asserted on every timed call: loss and gradient
against float64, their errors at most twice those of the plain form (and a few units in the last place). Peak memory is
that of a fresh process per side.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import full_size_losses as plain
from benchmarks.harness import interleaved
from benchmarks.machine import ROOT
from benchmarks.outcome_rows import rows_of_times
from benchmarks.parity import Ledger
from setr_fast.loss import LossAndAccuracy, dice_loss, focal_loss, lovasz_loss, ohem_loss

OURS, EAGER = "native", "eager, full-size logits"
SIDE, FULL = 128, 512
FEW, MANY = 19, 150
full = pytest.mark.full
CASES = [
    pytest.param("ohem", MANY, id="ohem"),
    pytest.param("focal", MANY, id="focal"),
    pytest.param("dice", MANY, id="dice"),
    pytest.param("lovasz", FEW, id="lovasz"),
    pytest.param("lovasz", MANY, id="lovasz-150", marks=full),
]
KEPT = 20_000
"""Pixels that hard-example mining keeps at least."""


def ours(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss of logits and labels as the library gives it."""
    known: dict[str, Callable[..., LossAndAccuracy]]
    known = {"ohem": ohem_loss, "focal": focal_loss, "dice": dice_loss, "lovasz": lovasz_loss}
    found = known[name]
    options: dict[str, Any] = {"min_kept": KEPT} if name == "ohem" else {}
    return lambda z, y: found(z, y, size=(FULL, FULL), align_corners=False, **options).loss


def eager(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the same, written plainly."""
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ohem": lambda z, y: plain.mmseg_ohem(z, y, 0.7, KEPT, None),
        "focal": lambda z, y: plain.focal(z, y, 2.0, 1.0),
        "dice": lambda z, y: plain.dice(z, y, 1, 1.0, None),
        "lovasz": lambda z, y: plain.lovasz(z, y, None),
    }
    return lambda z, y: found[name](plain.full_size(z, y, (FULL, FULL), False), y)


def draw(classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits and labels of which every seventh is ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (1, FULL, FULL), generator=generator)
    labels.view(-1)[::7] = 255
    return torch.randn(1, classes, SIDE, SIDE, generator=generator), labels


def with_gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> list[Tensor]:
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    assert leaf.grad is not None
    return [value.detach(), leaf.grad]


@pytest.mark.full
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_loss(name: str, classes: int, benchmark: Any, record: Callable[[Any], None], seed: int) -> None:
    logits, labels = draw(classes, seed)
    sides = {OURS: ours(name), EAGER: eager(name)}
    exact = with_gradient(eager(name), logits.double(), labels)
    given: dict[str, list[list[Tensor]]] = {side: [] for side in sides}

    def run(side: str) -> Callable[[], None]:
        return lambda: given[side].append(with_gradient(sides[side], logits, labels))

    times = interleaved({side: run(side) for side in sides}, rounds=7, seconds=20.0)
    ledgers = {side: Ledger(torch.finfo(torch.float32).eps) for side in sides}
    for side, results in given.items():
        for result in results:
            ledgers[side].add(0, result, exact)
    parity = {side: ledgers[side].parity(ledgers[EAGER], [exact], 2.0) for side in sides}
    rows = rows_of_times(
        times,
        parity,
        EAGER,
        kind="job",
        name=f"{name} loss",
        case=f"{classes} classes, {SIDE}x{SIDE} to {FULL}x{FULL}",
        direction="training step",
        dtypes=dict.fromkeys(times, "float32"),
        size=[1, FULL, FULL],
        chosen=OURS,
        peaks={side: peak_extra_bytes(name, classes, side) for side in sides},
    )
    record(rows)
    assert parity[OURS].passed, parity[OURS].why
    benchmark.extra_info.update(ratio=rows[0].ratio["median"])
    benchmark.pedantic(run(OURS), rounds=1)


def peak_extra_bytes(name: str, classes: int, side: str) -> int:
    """Measure how far one call of one side lifts a fresh process above logits and labels."""
    command = [sys.executable, "-m", "benchmarks.test_losses", name, str(classes), side]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def _measure(name: str, classes: int, side: str) -> int:
    loss = ours(name) if side == OURS else eager(name)
    logits, labels = draw(classes, 0)
    with_gradient(loss, logits[..., :4, :4], labels.fill_(255).index_fill_(1, torch.arange(4), 0))  # what stays loaded
    logits, labels = draw(classes, 0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    with_gradient(loss, logits, labels)
    return _status("VmHWM") - before


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
