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
    """Mark and drop items: by default all but ``full`` and ``peers``.

    ``-m full`` means all but the peers, ``-m peers`` the small ones of these and ``-m "peers and full"`` the large.
    Naming a test (``-k``, ``file.py::test``) is a choice of its own, from which nothing is dropped.
    """
    marks = config.getoption("markexpr") or ""
    named = config.getoption("keyword") or any("::" in argument for argument in config.args)
    unwanted = {name for name in ("full", "peers") if name not in marks}
    outside = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    for item in items:
        if not item.get_closest_marker("peers"):
            item.add_marker("full")
    if outside and not named:
        config.hook.pytest_deselected(items=outside)
        items[:] = [item for item in items if item not in set(outside)]


def is_full(config: pytest.Config) -> bool:
    """Return whether everything was asked for."""
    return "full" in (config.getoption("markexpr") or "")
