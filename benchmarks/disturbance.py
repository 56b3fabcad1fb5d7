"""How much of the machine others had while something was timed.

One other busy thread can make a two-thread run on two cores three times slower, so each timing carries the share of
processor time that went to other processes and to other guests of the host (steal).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
ALLOWED = 0.05
"""Share of all processor time, taken by others, up to which a timing counts as undisturbed."""
SHORTEST = 0.2
"""Seconds below which the kernel's ticks of a hundredth of a second say too little: rounds go on until then."""

companions: set[int] = set()
"""Processes of ours, still running, that do part of what is timed: their time is not that of others."""


@dataclass(frozen=True)
class Disturbance:
    """Shares of all processors' time: of other processes, and of other guests of the host."""

    others: float
    steal: float

    @property
    def share(self) -> float:
        """What others took in all."""
        return self.others + self.steal

    @property
    def heavy(self) -> bool:
        """Whether a timing under it is not to be believed."""
        return self.share > ALLOWED


@dataclass(frozen=True)
class Clock:
    """Processor time so far, in seconds: of everybody, stolen, in all (idle too), and of this process."""

    busy: float
    steal: float
    total: float
    own: float


def read_clock() -> Clock | None:
    """Return the clock, or None where the system does not tell (no /proc/stat)."""
    try:
        fields = [int(field) for field in STAT.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = (ticks / os.sysconf("SC_CLK_TCK") for ticks in fields)
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system + sum(map(_spent, companions))
    busy = user + nice + system + irq + softirq
    return Clock(busy, steal, busy + idle + iowait + steal, own)


def _spent(pid: int) -> float:
    """Return the processor time of another process in seconds; none if it has ended."""
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def between(before: Clock | None, after: Clock | None) -> Disturbance | None:
    """Return what happened between two readings, or None where it cannot be known."""
    if before is None or after is None:
        return None
    total = after.total - before.total
    if total < SHORTEST:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return Disturbance(max(others, 0.0) / total, (after.steal - before.steal) / total)
