"""How often classes occur in a split, and the weights and shares that are made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from setr_fast.data.classes import IGNORED
from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.options import DataConfig
from setr_fast.data.source import THREADS, Source, open_source
from setr_fast.errors import ConfigError

ENET_CONSTANT = 1.02
"""Keeps the weight of a rare class finite: 1 / ln(1.02) is 50.5, 1 / ln(2.02) is 1.42."""


@dataclass(frozen=True)
class Frequencies:
    """Labelled pixels of every class, picture by picture; ignored pixels count nowhere.

    Shapes: pixels [N, K] int64, one row per picture in the split's order.
    """

    names: tuple[str, ...]
    pixels: NDArray[np.int64]

    @property
    def totals(self) -> NDArray[np.int64]:
        """Pixels of each class. Shapes: [K]."""
        return self.pixels.sum(0)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of each class among all labelled pixels. Shapes: [K]."""
        return self.totals / max(int(self.totals.sum()), 1)

    @property
    def pictures(self) -> NDArray[np.int64]:
        """Number of pictures that show each class. Shapes: [K]."""
        return np.count_nonzero(self.pixels, axis=0)

    @property
    def shares_where_present(self) -> NDArray[np.float64]:
        """Share of each class among the labelled pixels of those pictures that show it; NaN for one never shown.

        Shapes: [K].
        """
        around = np.where(self.pixels > 0, self.pixels.sum(1, keepdims=True), 0).sum(0)
        return np.divide(self.totals, around, out=np.full(len(around), np.nan), where=around > 0)


def class_frequencies(
    source: Source, progress: Callable[[int, int], None] | None = None, indices: Iterable[int] | None = None
) -> Frequencies:
    """Count the labels of a source; ``indices``: of these pictures alone.

    Raises: FaultError if a mask cannot be read.
    """
    wanted = range(len(source)) if indices is None else list(indices)
    pixels = np.zeros((len(wanted), source.classes.num_classes), np.int64)
    with ThreadPoolExecutor(THREADS) as pool:
        for row, counts in enumerate(pool.map(lambda index: _counts(source, index), wanted)):
            pixels[row] = counts
            if progress is not None:
                progress(row + 1, len(wanted))
    return Frequencies(source.classes.names, pixels)


def split_frequencies(config: DataConfig, split: str | None = None) -> Frequencies:
    """Count the labels of a split, by default the one to train on."""
    return class_frequencies(open_source(config, config.train_split if split is None else split))


def _counts(source: Source, index: int) -> NDArray[np.int64]:
    # Sources of files can read a mask alone; the built-in scenes draw both at once.
    alone = getattr(source, "read_label", None)
    label = source.read(index)[1] if alone is None else alone(index)
    return np.bincount(label.ravel(), minlength=IGNORED + 1)[: source.classes.num_classes].astype(np.int64)


def median_frequency_weights(frequencies: Frequencies) -> tuple[float, ...]:
    """Return one loss weight per class: the median of all classes' frequencies over its own.

    A class's frequency is its share of the labelled pixels of the pictures that show it. A class that no picture
    shows has no frequency; its weight is 1, which no pixel ever asks for.

    Source: Eigen and Fergus 2015, arXiv 1411.4734, section 6.3.2; used by SegNet, arXiv 1511.00561, section 4.1.
    """
    shares = _seen(frequencies.shares_where_present)
    middle = float(np.median(shares[~np.isnan(shares)]))
    return tuple(1.0 if math.isnan(share) else middle / float(share) for share in shares)


def enet_weights(frequencies: Frequencies, constant: float = ENET_CONSTANT) -> tuple[float, ...]:
    """Return one loss weight per class, 1 / ln(constant + share of all labelled pixels).

    Source: Paszke et al. 2016, arXiv 1606.02147, section 5.2.
    Raises: ConfigError unless the constant is above 1, as no weight may be infinite or negative.
    """
    if not constant > 1:
        raise ConfigError(f"class weights: ENet's constant must be above 1, got {constant}")
    _seen(frequencies.shares_where_present)
    return tuple(1.0 / math.log(constant + float(share)) for share in frequencies.shares)


def rare_class_shares(frequencies: Frequencies, temperature: float = 0.01) -> NDArray[np.float64]:
    """Return how often each class is drawn first when pictures are then drawn among those that show it; sums to 1.

    The lower the temperature, the more the rarest classes are preferred. Classes that no picture shows are not drawn.

    Shapes: [K].
    Source: Hoyer et al. 2022 (DAFormer), arXiv 2111.14887, equations 7 and 8.
    """
    if not temperature > 0:
        raise ConfigError(f"data.rare_temperature: must be positive, got {temperature}")
    shown = ~np.isnan(_seen(frequencies.shares_where_present))
    power = (1.0 - frequencies.shares) / temperature
    weight = np.where(shown, np.exp(power - power[shown].max()), 0.0)  # the largest is taken off: no overflow
    return weight / weight.sum()


def _seen(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shares; refuse those of a split in which nothing is labelled."""
    if np.isnan(shares).all():
        what = "split must label some pixels to weigh its classes, got ignored ones only"
        raise FaultError(Fault(Path("data"), what, "see `setr-fast data check`"))
    return shares


def frequency_table(frequencies: Frequencies) -> list[str]:
    """Return a line per class: share, pictures that show it, and both kinds of weights."""
    median, enet = median_frequency_weights(frequencies), enet_weights(frequencies)
    width = max(len("class"), *(len(name) for name in frequencies.names))
    lines = [f"{'class':{width}s}  {'share %':>8s}  {'pictures':>8s}  {'median-frequency':>16s}  {'ENet':>8s}"]
    rows = zip(frequencies.names, frequencies.shares, frequencies.pictures, median, enet, strict=True)
    lines += [
        f"{name:{width}s}  {100 * share:8.3f}  {count:8d}  {first:16.4f}  {second:8.4f}"
        for name, share, count, first, second in rows
    ]
    return lines
