"""The config that a code base leaves beside (or inside) its weights, as plain values; never executed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Form = Literal["mmseg", "segmenter", "paddle"]


@dataclass(frozen=True)
class ForeignConfig:
    """A config of another code base."""

    form: Form
    """mmseg: keys model, data_preprocessor, ...; segmenter: variant.yml; paddle: YAML of PaddleSeg or PaddleViT."""
    values: dict[str, Any]
    """Plain dicts, lists, tuples, texts, numbers; inherited files are merged in."""
    path: Path
    """File that it was read from: beside the weights, or the weights file itself."""
