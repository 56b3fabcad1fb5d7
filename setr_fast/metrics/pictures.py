"""Counts of each picture for itself: what a resample of the pictures is scored from.

Of a picture only the classes that occur in it are kept, 32 bytes each: 2000 pictures with 20 of 150 classes are
1.3 MB, where their confusion matrices would be 360 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Part = tuple[Ints, Ints]
"""Of one picture: the classes that occur [n], and their hits, labels and predictions [n, 3]."""


def part_of(counts: Ints) -> Part:
    """Return the classes of one picture that occur. Shapes: counts [K, 3]."""
    classes = np.flatnonzero(counts.any(axis=1)).astype(np.int64)
    return classes, counts[classes].astype(np.int64)


@dataclass(frozen=True)
class PictureCounts:
    """Counts of N pictures, one after the other: picture i has the rows lengths[:i].sum() to lengths[:i + 1].sum()."""

    num_classes: int
    lengths: Ints
    """Classes that occur in each picture [N]."""
    classes: Ints
    """Class of each row [E]."""
    counts: Ints
    """Hits, labels and predictions of each row [E, 3]."""

    @classmethod
    def of(cls, parts: Iterable[Part], num_classes: int) -> PictureCounts:
        """Join the parts of single pictures."""
        parts = list(parts)
        return cls(
            num_classes,
            np.array([len(classes) for classes, _ in parts], np.int64),
            np.concatenate([np.zeros(0, np.int64), *(classes for classes, _ in parts)]),
            np.concatenate([np.zeros((0, 3), np.int64), *(counts for _, counts in parts)]),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def dense(self, begin: int, end: int) -> Ints:
        """Return pictures [begin, end) with all their classes. Shapes: [end - begin, K, 3]."""
        out = np.zeros((end - begin, self.num_classes, 3), np.int64)
        first, last = int(self.lengths[:begin].sum()), int(self.lengths[:end].sum())
        owner = np.repeat(np.arange(end - begin), self.lengths[begin:end])
        out[owner, self.classes[first:last]] = self.counts[first:last]
        return out

    def totals(self) -> Ints:
        """Return the counts of all pictures together. Shapes: [K, 3]."""
        out = np.zeros((self.num_classes, 3), np.int64)
        np.add.at(out, self.classes, self.counts)
        return out
