"""``--record`` keeps the rows of a run: one line of JSON each under ``benchmarks/results/<card>/``."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from benchmarks.harness import RESULTS, machine

_rows: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="append the rows to benchmarks/results/<card>/")


@pytest.fixture
def record() -> Any:
    """Return the function that keeps one row of this run."""
    return _rows.append


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _rows or not session.config.getoption("--record"):
        return
    facts = machine()
    folder = RESULTS / str(facts.pop("folder"))
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%d')}-{facts['commit'] or 'unknown'}.jsonl"
    with (folder / name).open("a") as file:
        for row in _rows:
            file.write(json.dumps(row | facts) + "\n")
