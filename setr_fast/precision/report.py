"""What calibration finds out about every layer, and in which order layers go back to wider numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ATTENTION = "attn"
"""What attention is called in the report, beside the four layers of a block."""


@dataclass(frozen=True)
class Layer:
    """One linear layer, rounded, or attention with the product in front of it: the quotient of its answer's power and
    its error's, in decibels; ``noise``: the power that its error adds to the residual stream, as a share of the
    stream's; ``work``: multiplications of a picture, for what rounding it gains."""

    name: str
    sqnr_db: float
    low: float
    high: float
    noise: float
    work: float


@dataclass
class Report:
    """What calibration found."""

    layers: list[Layer]
    windows: int
    kept_float: list[str] = field(default_factory=list)
    """Layers that stay in float32 (beside float8: in bfloat16), in the order in which they went back."""
    agreement: float = 1.0
    """Share of pixels with float32's class, of the picture where it is least; the last one is a stranger to the ranges.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "windows": self.windows,
            "agreement": self.agreement,
            "kept_float": self.kept_float,
            "sqnr_db": {layer.name: round(layer.sqnr_db, 2) for layer in self.layers},
        }


def costliest_first(layers: Sequence[Layer]) -> list[Layer]:
    """Return layers in the order in which they go back: those first that cost most noise for what they gain.

    Attention in bytes stands and falls with the products around it, so it never goes back after them.
    """
    known = {layer.name: layer for layer in layers}

    def price(layer: Layer) -> float:
        block, _, name = layer.name.rpartition(f".{ATTENTION}")
        heads = known.get(f"{block}.{ATTENTION}")
        with_heads = heads if heads is not None and name in (".qkv", ".proj") else None
        noise = layer.noise + (with_heads.noise if with_heads else 0.0)
        return noise / (layer.work + (with_heads.work if with_heads else 0.0))

    return sorted(layers, key=lambda layer: (price(layer), layer.name), reverse=True)


def first_guess(order: Sequence[Layer], differ: float, may: float) -> int:
    """Return how many layers carry so much noise that without them only the pixels that may differ do: as many pixels
    lie within an error of a tie as the error is large."""
    noise = [layer.noise for layer in order]
    left = sum(noise) * (max(may, 0.0) / max(differ, 1e-12)) ** 2
    return next(count for count in range(len(noise) + 1) if sum(noise[count:]) <= left)
