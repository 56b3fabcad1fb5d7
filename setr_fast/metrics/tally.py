"""What an evaluation adds up, picture by picture, and how shares of it become one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from setr_fast.errors import ConfigError, ShapeError
from setr_fast.metrics.boundary import boundary_counts
from setr_fast.metrics.options import AbsentRule
from setr_fast.metrics.pictures import Part, PictureCounts, part_of
from setr_fast.metrics.scores import Scores
from setr_fast.ops.confusion_matrix import confusion_matrix

Classes = torch.Tensor | npt.NDArray[Any]


class Tally:
    """One confusion matrix over all pictures, and each picture's own counts.

    Pictures have numbers, each is added once, in any order, by any rank: what comes out depends on none of that.
    ``boundary_ratio`` asks for counts of the boundary bands too, ``probability_of`` for the mean absolute error of
    that class's probability (``add_error``).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        boundary_ratio: float | None = None,
        probability_of: int | None = None,
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.boundary_ratio, self.probability_of = boundary_ratio, probability_of
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self._areas: dict[int, Part] = {}
        self._bands: dict[int, Part] = {}
        self._errors: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._areas)

    def __contains__(self, picture: int) -> bool:
        return picture in self._areas

    def add(self, picture: int, prediction: Classes, labels: Classes, confusion: torch.Tensor | None = None) -> None:
        """Count one picture; ``confusion`` is its matrix where that is known already.

        Shapes: prediction and labels [H, W], any integers.
        Raises: ShapeError as ``ops.confusion_matrix`` does; ConfigError for a picture that was counted before.
        """
        self._refuse({picture} & self._areas.keys())
        if confusion is None:
            there, truth = _tensor(prediction), _tensor(labels)
            confusion = confusion_matrix(there, truth.to(there.device), self.num_classes, self.ignore_index)
        scores = Scores.of(confusion)
        if len(scores.confusion) != self.num_classes:
            raise ShapeError(
                f"tally: confusion must be of {self.num_classes} classes, got {len(scores.confusion)}; "
                "count with the tally's own number"
            )
        if self.boundary_ratio is not None:
            found = boundary_counts(
                _array(prediction), _array(labels), self.num_classes, self.ignore_index, self.boundary_ratio
            )
            self._bands[picture] = part_of(found)
        self.confusion += scores.confusion
        self._areas[picture] = part_of(scores.counts)

    def add_error(self, picture: int, probability: npt.NDArray[Any], labels: Classes) -> None:
        """Take in mean |p - g| of one picture: p the probability of class ``probability_of``, g 1 on its pixels.

        Ignored pixels are left out; a picture of ignored pixels alone has no error.

        Shapes: probability and labels [H, W].
        """
        truth = _array(labels)
        counted = truth != self.ignore_index
        gaps = np.abs(probability.astype(np.float64) - (truth == self.probability_of))[counted]
        self._errors[picture] = float(gaps.mean()) if gaps.size else float("nan")

    def merge(self, other: Tally) -> None:
        """Take in another share of the same evaluation.

        Raises: ConfigError if it counted otherwise, or a picture that is in here.
        """
        if self._rules != other._rules:
            raise ConfigError(
                f"tally: shares must count alike, got {other._rules} beside {self._rules}; evaluate all with one set"
            )
        self._refuse(self._areas.keys() & other._areas.keys())
        self.confusion += other.confusion
        self._areas |= other._areas
        self._bands |= other._bands
        self._errors |= other._errors

    def gather(self) -> None:
        """Merge the shares of all ranks into each of them (a collective)."""
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, self)
        for rank, share in enumerate(shares):
            if rank != dist.get_rank():
                self.merge(share)

    def scores(self, absent: AbsentRule = "left_out") -> Scores:
        """Return the scores of all pictures so far."""
        return Scores(self.confusion.copy(), absent)

    @property
    def pictures(self) -> list[int]:
        """Numbers of the pictures, in order; the order of everything below."""
        return sorted(self._areas)

    @property
    def areas(self) -> PictureCounts:
        """Each picture's hits, labels and predictions, in pixels."""
        return PictureCounts.of((self._areas[picture] for picture in self.pictures), self.num_classes)

    @property
    def bands(self) -> PictureCounts | None:
        """Each picture's pixels in the boundary bands, if they were asked for."""
        if self.boundary_ratio is None:
            return None
        return PictureCounts.of((self._bands[picture] for picture in self.pictures), self.num_classes)

    @property
    def errors(self) -> npt.NDArray[np.float64] | None:
        """Each picture's mean absolute error, if it was asked for. Shapes: [N]."""
        if self.probability_of is None:
            return None
        return np.array([self._errors[picture] for picture in self.pictures], np.float64)

    @property
    def _rules(self) -> tuple[Any, ...]:
        return self.num_classes, self.ignore_index, self.boundary_ratio, self.probability_of

    def _refuse(self, twice: set[int]) -> None:
        if twice:
            raise ConfigError(
                f"tally: each picture must be counted once, got {min(twice)} again; merge shares that do not overlap"
            )


def _tensor(classes: Classes) -> torch.Tensor:
    return classes if isinstance(classes, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(classes))


def _array(classes: Classes) -> npt.NDArray[Any]:
    return classes.cpu().numpy() if isinstance(classes, torch.Tensor) else classes
