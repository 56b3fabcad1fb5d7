"""Options of scoring. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from setr_fast.errors import ConfigError
from setr_fast.fields import coerce_fields

AbsentRule = Literal["left_out", "counts_as_one"]
Extra = Literal["boundary", "mae", "volumes"]

RESAMPLES = 1000
LEAST_RESAMPLES = 100
"""Of fewer, the 2.5 and 97.5 percent quantiles are two or three draws."""
MOST_RESAMPLES = 10**6
LEVEL = 0.95


def check_resamples(count: int) -> None:
    """Raise ConfigError for a number of resamples that gives no interval, or not in anybody's lifetime."""
    if count != 0 and not LEAST_RESAMPLES <= count <= MOST_RESAMPLES:
        raise ConfigError(
            f"bootstrap: must be 0, or at least {LEAST_RESAMPLES} to have tails and at most {MOST_RESAMPLES}, "
            f"got {count}"
        )


@dataclass(frozen=True)
class MetricsConfig:
    """What is computed besides IoU, Dice and accuracy, and by which rules."""

    metrics: tuple[Extra, ...] = ()
    """boundary: boundary IoU; mae: mean absolute error of one class's probability, for which every picture passes
    through the model twice; volumes: Dice of whole volumes, where pictures are their slices."""
    absent: AbsentRule = "left_out"
    """A class in neither masks nor predictions: left out of the means, or a perfect one (PaddleSeg)."""
    boundary_ratio: float = 0.02
    """Width of the boundary's band, as a share of the picture's diagonal."""
    mae_class: str | None = None
    """Name or number of the class whose probability mae looks at; none: class 1 of two."""
    bootstrap: int = RESAMPLES
    """Resamples of the pictures behind the interval of mIoU; 0: no interval."""
    bootstrap_seed: int = 0
    """Seed of the resamples."""

    def __post_init__(self) -> None:
        for name, value in coerce_fields(MetricsConfig, self, where="metrics").items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "metrics", tuple(sorted(set(self.metrics))))
        if not 0 < self.boundary_ratio <= 1:
            raise ConfigError(f"boundary_ratio: must be above 0 and at most 1, got {self.boundary_ratio}")
        if self.bootstrap_seed < 0:
            raise ConfigError(f"bootstrap_seed: must be 0 or more, got {self.bootstrap_seed}")
        check_resamples(self.bootstrap)
        if self.mae_class is not None and "mae" not in self.metrics:
            raise ConfigError(f"mae_class: needs --metrics mae beside it, got {self.mae_class!r} alone")
