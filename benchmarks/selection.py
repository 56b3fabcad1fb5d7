"""Which rows run: a default selection that two cores finish in ten minutes, and everything with ``-m full``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")
MOST = 2
"""Cases per op in the default selection."""


def spread(items: Sequence[T], most: int = MOST) -> list[T]:
    """Return at most ``most`` (two or more) of them: the first, the last, and some evenly between."""
    if len(items) <= most:
        return list(items)
    step = (len(items) - 1) / (most - 1)
    return [items[round(index * step)] for index in range(most)]


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark and drop items: by default all but ``full`` and ``peers``; ``-m full`` means all but ``peers``.

    Naming a test (``-k``, ``file.py::test``) or marks (``-m``) is a choice of its own, from which nothing is dropped.
    """
    chosen = config.getoption("markexpr") or config.getoption("keyword") or any("::" in a for a in config.args)
    outside = [item for item in items if item.get_closest_marker("peers") or item.get_closest_marker("full")]
    for item in items:
        if not item.get_closest_marker("peers"):
            item.add_marker("full")
    if not chosen and outside:
        config.hook.pytest_deselected(items=outside)
        items[:] = [item for item in items if item not in set(outside)]


def is_full(config: pytest.Config) -> bool:
    """Return whether everything was asked for."""
    return "full" in (config.getoption("markexpr") or "")
