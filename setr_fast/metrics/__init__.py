"""Scores of segmentations. Everything is imported on first use: options and `compare` do without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from setr_fast.metrics.scores import Scores, majority_baseline
    from setr_fast.metrics.tally import Tally

_WHERE = {"Scores": "scores", "majority_baseline": "scores", "Tally": "tally"}
__all__ = ["Scores", "Tally", "majority_baseline"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"setr_fast.metrics.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'setr_fast.metrics' has no attribute {name!r}")
