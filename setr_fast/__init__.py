"""setr_fast: plain-ViT semantic segmentation (SETR, Segmenter) that trains and runs fast.

Everything here is imported on first use, so that ``import setr_fast`` and ``--help`` load neither torch nor a kernel.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from setr_fast import ops
    from setr_fast.checkpoints.load import load
    from setr_fast.models.catalog import list_models
    from setr_fast.models.model import create_model
    from setr_fast.ops import backend

_WHERE = {
    "backend": "setr_fast.ops",
    "create_model": "setr_fast.models.model",
    "list_models": "setr_fast.models.catalog",
    "load": "setr_fast.checkpoints.load",
}
__all__ = ["__version__", "backend", "create_model", "list_models", "load", "ops"]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("setr_fast.ops")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'setr_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
