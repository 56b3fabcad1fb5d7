"""``--record`` keeps the rows of a run: one line of JSON each under ``benchmarks/results/<card>/``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import RESULTS, ceilings, machine, worst_disturbance

_rows: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="append the rows to benchmarks/results/<card>/")
    parser.addoption("--record-to", type=Path, help="write the rows to this file instead")


@pytest.fixture
def record() -> Any:
    """Return the function that keeps one row of this run, with what others took of the machine meanwhile."""
    return lambda row: _rows.append(row | worst_disturbance())


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--record-to")
    if not _rows or not (target or session.config.getoption("--record")):
        return
    facts = machine() | {"ceilings": ceilings()}
    folder = RESULTS / str(facts.pop("folder"))
    path = target or folder / f"{time.strftime('%Y%m%d')}-{facts['commit'] or 'unknown'}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if target else "a") as file:
        for row in _rows:
            file.write(json.dumps(row | facts) + "\n")
