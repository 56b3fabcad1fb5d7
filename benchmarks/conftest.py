"""What every benchmark shares: its options, the random seed, and what becomes of rows.

``--record`` keeps them: one line of JSON each under ``benchmarks/results/<card>/``. All are shown when the run ends.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness, shown
from benchmarks.ceilings import ceilings
from benchmarks.machine import RESULTS, clocks_mhz, machine
from benchmarks.memory import keep_freed_memory
from benchmarks.resume import Plan
from benchmarks.rows import Row, append, fields_of
from benchmarks.selection import is_full, select
from benchmarks.survive import GOES_ON

os.environ.setdefault("SETR_FAST_ADOPTED", "off")  # what ships is measured, not what this machine has adopted

SEED = pytest.StashKey[int]()
SHOWN = pytest.StashKey[list[list[dict[str, Any]]]]()
STARTED = time.strftime("%Y%m%d-%H%M%S")  # files of results are read in the order of their names, the newest last


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="append the rows to benchmarks/results/<card>/")
    parser.addoption("--record-to", type=Path, help="write the rows to this file instead")
    parser.addoption("--attempts", type=int, default=harness.ATTEMPTS, help="of a measurement while others are busy")
    parser.addoption("--quick", action="store_true", help="each side once: does all run and is it right? not recorded")
    parser.addoption("--continue", action="store_true", dest="goes_on", help="leave out what results of this code hold")
    parser.addoption("--minutes", type=float, help="begin no comparison that would end later")
    parser.addoption("--seed", type=int, help="of the random inputs; drawn anew by default, and kept in every row")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: not in the default selection of benchmarks; -m full runs all")
    config.addinivalue_line("markers", "peers: beside other code bases, where pip install -e .[peers] put them")
    keep_freed_memory()
    if config.getoption("--quick") and config.getoption("--record"):
        raise pytest.UsageError("--record: rows must be measured in full, got --quick; leave one of the two out")
    harness.QUICK = config.getoption("--quick")
    harness.ATTEMPTS = 1 if harness.QUICK else config.getoption("--attempts")
    if is_full(config):
        harness.REPEATING = math.inf
    # pytest-benchmark's own table has times alone, and ratios of comparisons that have nothing to do with each other.
    if config.option.verbose <= 0 and hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True
    config.stash[SHOWN] = []
    seed = config.getoption("--seed")
    config.stash[SEED] = int.from_bytes(os.urandom(4)) if seed is None else seed
    target = config.getoption("--record-to")
    if target and GOES_ON not in os.environ and not config.getoption("goes_on"):
        target.unlink(missing_ok=True)
    files = [*(RESULTS / str(machine()["folder"])).glob("*.jsonl"), *([target] if target else [])]
    options = {name: config.getoption(name) for name in ("goes_on", "minutes", "quick")}
    config.pluginmanager.register(Plan(files, **options))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    select(config, items)


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """Of this run's random inputs."""
    return request.config.stash[SEED]


@pytest.fixture(scope="session")
def _probes() -> None:
    """The facts of the run, taken before its first row."""
    machine()
    ceilings()


@pytest.fixture
def record(request: pytest.FixtureRequest, seed: int, _probes: None) -> Callable[[Any], None]:
    """Return the function that keeps the rows of a measurement, at once, with what others took of the machine."""
    option = request.config.getoption
    facts = dict(machine())
    folder, began = RESULTS / str(facts.pop("folder")), time.perf_counter()
    facts |= {"seed": seed, "test": request.node.nodeid, "quick": harness.QUICK}
    path = option("--record-to") or folder / f"{STARTED}-{facts['commit'] or 'unknown'}.jsonl"

    def keep(rows: Row | dict[str, Any] | Sequence[Row]) -> None:
        circumstances = harness.worst_disturbance() | facts
        circumstances |= {"load": os.getloadavg()[0], "clocks_mhz": clocks_mhz(), "ceilings": ceilings()}
        circumstances["took_seconds"] = round(time.perf_counter() - began, 3)
        whole = [fields_of(row) | circumstances for row in ([rows] if isinstance(rows, Row | dict) else rows)]
        request.config.stash[SHOWN].append(whole)
        if option("--record-to") or option("--record"):
            for row in whole:
                append(path, row)

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if groups := config.stash[SHOWN]:
        facts = machine()
        title = f"setr_fast on {facts['machine']}, {facts['threads']} threads, torch {facts['torch']}"
        terminalreporter.section(title, sep="-")
        for line in shown.lines(groups):
            terminalreporter.write_line(line)
