"""Fixtures every test may use: the shared folder of real data, seeds, one thread per process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("SETR_FAST_ADOPTED", "off")  # what ships is tested, not what this machine has adopted

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SETR_FAST_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real pictures and recorded outputs; tests skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no shared data folder; set SETR_FAST_SHARED to run this test")
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and what is slow unless it is asked for, with the reason."""
    no_card = None if torch.cuda.is_available() else pytest.mark.skip(reason="needs a CUDA device")
    asked = "slow" in os.environ.get("SETR_FAST_TESTS", "")
    slow = None if asked else pytest.mark.skip(reason="slow; SETR_FAST_TESTS=slow runs it")
    for item in items:
        for keyword, skip in (("gpu", no_card), ("slow", slow)):
            if skip is not None and keyword in item.keywords:
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the op x backend pairs that nothing exercised: green must not overstate."""
    import sys

    registry = next(
        (m for name, m in sys.modules.items() if name.endswith("test_registry") and hasattr(m, "exercised")), None
    )
    if registry is None:
        return
    declared = {(op.name, b.name, b.device) for op in registry.OPS.values() for b in op.backends}
    idle = sorted(
        f"{o}/{b} on {d}"
        for o, b, d in declared
        if (o, b) not in registry.exercised or (d == "cuda" and not torch.cuda.is_available())
    )
    if idle:
        terminalreporter.write_line(f"not exercised in this run: {', '.join(idle)}")
