"""What ``bench --adopt`` does: find, per op and dtype, a backend that is right and faster on this machine than what the
op would take by itself, and have it taken from then on.

The rule: right in every case of the op that it serves, odd shapes included; declared to repeat its bits; in no timed
case slower than what is used now by more than ``LOSS``; and faster by ``WORTH`` in their geometric mean. Where what is
used now is itself wrong, the fastest that is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from setr_fast.measure import ratio
from setr_fast.ops import OPS, _adopted
from setr_fast.ops._op import FULL, REFERENCE, Case, Draw, Op, ShapesOnly
from setr_fast.verdict import WORK, WORTH, faults, timed

LOSS = 0.95
HOPELESS = 2.0
"""Times slower than what is used in a first call: not timed again."""
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


@dataclass
class Finding:
    """One op in one dtype. ``gains``: times faster than what is used now, by backend and case; ``wrong``: backends
    that gave another result than the reference, with case and error."""

    op: str
    dtype: str
    gains: dict[str, list[float]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    checked: int = 0
    used_is_wrong: bool = False

    @property
    def chosen(self) -> str | None:
        """The backend that the rule chooses, None where the op stays as it is."""
        least, worth = (0.0, 0.0) if self.used_is_wrong else (LOSS, WORTH)
        fit = {name: _mean(found) for name, found in self.gains.items() if min(found) >= least}
        best = max(fit, key=lambda name: fit[name], default=None)
        return best if best is not None and fit[best] >= worth else None

    def line(self) -> str:
        """Return the finding as a line of the table."""
        speeds = "  ".join(
            f"{name} {_mean(found):.2f}x ({min(found):.2f}..{max(found):.2f})" for name, found in self.gains.items()
        )
        speeds += "".join(f"  {name} WRONG ({why})" for name, why in self.wrong.items())
        verdict = f"adopted: {self.chosen}" if self.chosen else "as it is"
        return f"{self.op:34s} {self.dtype:9s} {self.checked:3d} cases checked  {verdict:26s} {speeds}"


def findings(device: str, names: Sequence[str] = (), seconds: float = 0.5) -> Iterator[Finding]:
    """Yield a finding per op (all, or those named) and dtype; ``seconds`` bounds the timing of one case."""
    for name in names or sorted(OPS):
        op = OPS[name]
        for dtype in DTYPES[torch.device(device).type] if op.rounds else (torch.float32,):
            with _adopted.ignored():
                yield _find(op, device, dtype, seconds)


def keep(found: Sequence[Finding], device: str) -> str:
    """Write down what the findings choose, an op that stays as it is included; return the file's path."""
    by_op: dict[str, dict[str, str]] = {}
    for one in found:
        by_op.setdefault(one.op, {})
        if one.chosen is not None:
            by_op[one.op][one.dtype] = one.chosen
    return str(_adopted.keep(device, by_op))


def _find(op: Op, device: str, dtype: torch.dtype, seconds: float) -> Finding:
    finding = Finding(op.name, str(dtype)[6:])
    repeatable = {b.name for b in op.backends if b.repeats} | {REFERENCE}
    for case in op.cases():
        if (case.bench == FULL and device == "cpu") or not _is_within(op, case, device, dtype):
            continue
        args = case.make(Draw.on(device, dtype))
        finding.wrong |= {name: f"{case.name}: {why}" for name, why in faults(op, args).items()}
        finding.checked += 1
        used = op.choose(*args)
        finding.used_is_wrong |= used in finding.wrong
        if not case.bench:
            continue
        serving = dict.fromkeys(b.name for b in op.backends if not op.refusals(b, *args))
        sides = [n for n in (*serving, REFERENCE) if n == used or (n in repeatable and n not in finding.wrong)]
        first = {name: once[0] for name, once in timed(op, args, sides, 0.0, least=1).items()}
        hopeless = [name for name in sides if first[name] > HOPELESS * first[used]]
        times = timed(op, args, [name for name in sides if name not in hopeless], seconds)
        for name in sides:
            if name != used:
                gain = first[used] / first[name] if name in hopeless else ratio(times[used], times[name])["median"]
                finding.gains.setdefault(name, []).append(gain)
    for name in finding.wrong:
        finding.gains.pop(name, None)
    return finding


def _is_within(op: Op, case: Case, device: str, dtype: torch.dtype) -> bool:
    cost = op.cost(*case.make(ShapesOnly.on("meta", dtype)))
    return cost.bytes + cost.flops <= WORK[torch.device(device).type]


def _mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
