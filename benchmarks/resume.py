"""A run in parts: what results of the same code already hold is left out, and what is left has its time.

``--continue`` leaves out comparisons whose rows lie in the results of this machine, or in the file of ``--record-to``,
if no code has changed since. ``--minutes N`` begins none that would end later. Both say at the start how long it takes.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import ROOT, machine
from benchmarks.rows import OTHER_MAKE, read, refusal

CODE = ("setr_fast", "kernels", "csrc", "benchmarks/*.py", "CMakeLists.txt", "setup.py")
"""Where a change makes figures old."""
FOREIGN = ("compile",)
"""Sides whose faults are not ours: a comparison with them wrong is over."""
GUESSED = (
    ("test_training_step[", "vit_l16-768px", 1100.0),
    ("test_training_step[", "vit_l16-512px", 480.0),
    ("test_training_step[", "", 60.0),
    ("test_models.py::test_inference[", "vit_l16-768px", 330.0),
    ("test_models.py::test_inference[", "vit_l16-512px", 170.0),
    ("test_models.py::test_inference[", "", 45.0),
    ("test_op[attention", "vit_l_768px_b", 120.0),
    ("test_op[", "vit_l_768px", 45.0),
    ("test_op[", "", 15.0),
    ("test_decoder.py", "", 60.0),
    ("test_slide_and_flip[", "b16", 120.0),
    ("test_a_folder_of_photographs[", "_", 120.0),
    ("", "", 30.0),
)
"""Two parts of a test's name and its seconds on two idle cores, until results of the machine tell: the first counts."""
QUICK_SHARE = 0.4
"""Of that time, with --quick."""
Row = dict[str, Any]


class Plan:
    """What a run measures, and how long that takes: a plugin of pytest."""

    def __init__(self, files: Sequence[Path], *, goes_on: bool, minutes: float | None, quick: bool) -> None:
        rows = _rows(files) if files else {}
        self.held = {test for test, found in rows.items() if goes_on and is_held(found, quick=quick)}
        self.took = {test: known for test, found in rows.items() if (known := took(found))}
        self.share = QUICK_SHARE if quick else 1.0
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.left_out = 0

    def seconds(self, test: str) -> float:
        """Return how long a comparison takes, as it did before or by its kind."""
        return self.share * (self.took.get(test) or guess(test))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Drop what is held."""
        out = [item for item in items if item.nodeid in self.held]
        self.left_out = len(out)
        if out:
            config.hook.pytest_deselected(items=out)
            items[:] = [item for item in items if item.nodeid not in self.held]

    def pytest_report_collectionfinish(self, items: Sequence[pytest.Item]) -> str:
        """Say how much is left."""
        names = [item.nodeid for item in items]
        guessed = sum(name not in self.took for name in names)
        said = f"{len(names)} comparisons, about {_duration(sum(map(self.seconds, names)))} on an idle machine"
        if guessed:
            said += f" ({guessed} of the times are guessed, from their kind)"
        return f"{said}; {self.left_out} more are held by results of this code" if self.left_out else said

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin nothing that would end too late."""
        if self.end is not None and time.monotonic() + self.seconds(item.nodeid) > self.end:
            pytest.skip("would end after --minutes; --continue goes on")


def guess(test: str) -> float:
    """Return the seconds of a comparison that no results know."""
    return next(seconds for first, second, seconds in GUESSED if first in test and second in test)


def is_held(rows: Iterable[Row], *, quick: bool) -> bool:
    """Return whether a comparison need not be made again: of this code, right, and, but for --quick, undisturbed."""
    rows = [row for row in rows if row["commit"] and not row["dirty"] and same_code(row["commit"])]
    rows = [row for row in rows if quick or not (row["quick"] or row["disturbed"])]
    return any(not _faults(group) for group in _by_run(rows))


def took(rows: Iterable[Row]) -> float:
    """Return the seconds that a comparison took last when nothing disturbed it; 0 where that is not known."""
    return next((row["took_seconds"] for row in reversed([*rows]) if not (row["disturbed"] or row["quick"])), 0.0)


@functools.cache
def same_code(commit: str) -> bool:
    """Return whether nothing that is measured has changed since a commit."""
    if commit == machine()["commit"] and not machine()["dirty"]:
        return True
    done = subprocess.run(["git", "diff", "--quiet", commit, "--", *CODE], cwd=ROOT, capture_output=True, check=False)
    return done.returncode == 0


def _rows(files: Iterable[Path]) -> dict[str, list[Row]]:
    """Return the rows of this machine by test, oldest file first."""
    found: dict[str, list[Row]] = {}
    same = ("machine", "threads", "torch")
    for path in sorted(files, key=lambda file: file.name):
        for _, row in read(path) if path.is_file() else ():
            if "test" in row and all(row[name] == machine()[name] for name in same):
                found.setdefault(row["test"], []).append(row)
    return found


def _by_run(rows: Iterable[Row]) -> Iterable[list[Row]]:
    """Return the rows of one comparison, those of one run together."""
    runs: dict[tuple[int, float], list[Row]] = {}
    for row in rows:
        runs.setdefault((row["seed"], row["took_seconds"]), []).append(row)
    return runs.values()


def _faults(rows: Iterable[Row]) -> list[str]:
    """Return why sides of ours are wrong."""
    ours = [row for row in rows if row["kind"] in OTHER_MAKE or row["side"] not in FOREIGN]
    return [why for row in ours if (why := refusal(row | {"disturbed": False, "quick": False}))]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"
