"""Rare-class sampling: first a class is drawn, the rarer the likelier, then one of the pictures that show it.

Source: Hoyer et al. 2022 (DAFormer), arXiv 2111.14887, section 3.3. Unlike there, the crop is not drawn again until it
shows the class; ``augment.cat_max_ratio`` still redraws crops that one class fills.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from setr_fast.data.classes import ClassTable
from setr_fast.data.draws import Draws, philox
from setr_fast.data.frequencies import Frequencies, class_frequencies, rare_class_shares
from setr_fast.data.options import DataConfig
from setr_fast.data.source import Source
from setr_fast.errors import ConfigError

logger = logging.getLogger("setr_fast")


class RareClassSource:
    """The samples of another source, in an order that prefers rare classes.

    A picture may come several times an epoch, each time with changes of its own: every place of an epoch has a number
    of its own, of which the picture's is the remainder by their count.
    """

    def __init__(self, source: Source, frequencies: Frequencies, temperature: float) -> None:
        self.source = source
        self.names: Sequence[str] = _Repeated(source.names)
        self._shares = rare_class_shares(frequencies, temperature).tolist()
        self._showing: list[NDArray[np.intp]] = [np.flatnonzero(column) for column in frequencies.pixels.T]

    @property
    def classes(self) -> ClassTable:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def at(self, seed: int, epoch: int, place: int) -> int:
        """Return which sample stands at a place of an epoch: the arguments alone decide."""
        draws = Draws(philox(seed, "rare", place, epoch))
        pictures = self._showing[draws.pick(self._shares)]
        return int(pictures[draws.integer(0, len(pictures) - 1)]) + len(self.source) * place

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return picture and training ids of a sample."""
        return self.source.read(index % len(self.source))


def by_sampling(config: DataConfig, source: Source) -> Source:
    """Return the source to train on in the order that ``config.sampling`` asks for.

    Raises: ConfigError for a source that is read in an order of its own.
    """
    if config.sampling == "uniform":
        return source
    if hasattr(source, "at"):
        raise ConfigError("data.sampling: rare_classes must be able to read any picture, got shards; use a folder")
    logger.info("counting the classes of %d pictures for --data.sampling rare_classes", len(source))
    return RareClassSource(source, class_frequencies(source), config.rare_temperature)


class _Repeated(Sequence[str]):
    """Names that begin again after the last."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are not asked for
        return self._names[index % len(self._names)]
