"""``--record`` keeps the rows of a run: one line of JSON each under ``benchmarks/results/<card>/``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness
from benchmarks.ceilings import ceilings
from benchmarks.machine import RESULTS, clocks_mhz, machine
from benchmarks.memory import keep_freed_memory
from benchmarks.rows import Row, append, fields_of
from benchmarks.selection import select
from benchmarks.survive import GOES_ON

SEED = pytest.StashKey[int]()
STARTED = time.strftime("%Y%m%d-%H%M%S")  # files of results are read in the order of their names, the newest last


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="append the rows to benchmarks/results/<card>/")
    parser.addoption("--record-to", type=Path, help="write the rows to this file instead")
    parser.addoption("--attempts", type=int, default=harness.ATTEMPTS, help="of a measurement while others are busy")
    parser.addoption("--seed", type=int, help="of the random inputs; drawn anew by default, and kept in every row")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: not in the default selection of benchmarks; -m full runs all")
    config.addinivalue_line("markers", "peers: beside other code bases, where pip install -e .[peers] put them")
    keep_freed_memory()
    harness.ATTEMPTS = config.getoption("--attempts")
    seed = config.getoption("--seed")
    config.stash[SEED] = int.from_bytes(os.urandom(4)) if seed is None else seed
    target = config.getoption("--record-to")
    if target and GOES_ON not in os.environ:
        target.unlink(missing_ok=True)


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
    folder = RESULTS / str(facts.pop("folder"))
    path = option("--record-to") or folder / f"{STARTED}-{facts['commit'] or 'unknown'}.jsonl"

    def keep(rows: Row | dict[str, Any] | Sequence[Row]) -> None:
        circumstances = harness.worst_disturbance() | facts
        circumstances |= {"load": os.getloadavg()[0], "clocks_mhz": clocks_mhz(), "ceilings": ceilings(), "seed": seed}
        if option("--record-to") or option("--record"):
            for row in [rows] if isinstance(rows, Row | dict) else rows:
                append(path, fields_of(row) | circumstances)

    return keep
