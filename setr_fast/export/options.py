"""Options of ``export``. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from setr_fast.errors import ConfigError
from setr_fast.fields import coerce_fields

MOST_SIZES = 10_000


@dataclass(frozen=True)
class ExportConfig:
    """What a model is exported as, and how the result is compared with it."""

    format: Literal["torch_export", "aoti", "onnx", "cpp"] = "torch_export"
    """torch_export: a .pt2 of torch.export; aoti: a .pt2 compiled by AOTInductor for this kind of machine; onnx: an
    .onnx file; cpp: a folder with an aoti package and a C++ program that runs it."""
    kernels: Literal["portable", "own"] = "portable"
    """portable: the runtime's own ops alone; own: this package's kernels (torch_export, aoti, cpp), faster, and needed
    where the result runs: `import setr_fast.ops` in Python, libsetr_fast_ops.so in C++."""
    sizes: int = 20
    """Odd picture sizes that the result is compared on with the model in Python; 0: not compared."""
    least_agreement: float = 0.9999
    """Share of equal pixels below which nothing is written; pixels where two classes are level are not held against
    it."""

    def __post_init__(self) -> None:
        for name, value in coerce_fields(ExportConfig, self, where="export").items():
            object.__setattr__(self, name, value)
        if self.format == "onnx" and self.kernels == "own":
            raise ConfigError("kernels: must be portable for onnx, got own; ONNX runtimes do not know our ops")
        if not 0 <= self.sizes <= MOST_SIZES or not 0.0 <= self.least_agreement <= 1.0:
            raise ConfigError(
                f"sizes: must lie in 0..{MOST_SIZES} and least_agreement in [0, 1], got {self.sizes} and "
                f"{self.least_agreement}"
            )
