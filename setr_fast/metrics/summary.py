"""A tally as the numbers of a result file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from setr_fast.metrics.bootstrap import Interval, miou_interval
from setr_fast.metrics.options import MetricsConfig
from setr_fast.metrics.pictures import PictureCounts
from setr_fast.metrics.result import packed
from setr_fast.metrics.scores import by_name, distinct, iou_of, majority_baseline, mean_of, number
from setr_fast.metrics.tally import Tally
from setr_fast.metrics.volumes import volume_scores


def summary(
    tally: Tally, class_names: Sequence[str], picture_names: Sequence[str], config: MetricsConfig
) -> dict[str, Any]:
    """Return all scores as JSON can hold them; docs/metrics.md says what each is.

    ``picture_names`` are those of the tally's pictures, in their order.

    Raises: ShapeError if there is not one name per class.
    """
    scores, areas, bands, errors = tally.scores(config.absent), tally.areas, tally.bands, tally.errors
    out = scores.as_dict(class_names)
    out["pixels_per_class"] = dict(zip(distinct(class_names), scores.counts[:, 1].tolist(), strict=True))
    out["mIoU_interval"] = _interval(areas, config)
    out["majority_mIoU"] = number(majority_baseline(scores.confusion))
    pictures: dict[str, Any] = {"names": list(picture_names), "areas": packed(areas)}
    if bands is not None:
        ious = iou_of(bands.totals(), config.absent)
        out["boundary"] = {
            "mIoU": number(float(mean_of(ious))),
            "IoU": by_name(class_names, ious),
            "mIoU_interval": _interval(bands, config),
            "ratio": tally.boundary_ratio,
        }
        pictures["bands"] = packed(bands)
    if errors is not None:
        assert tally.probability_of is not None
        out["mae"] = _error(errors, areas, tally.probability_of, class_names)
        pictures["mae"] = [number(value) for value in errors.tolist()]
    if "volumes" in config.metrics:
        out["volumes"] = volume_scores(areas, picture_names, class_names)
    out["pictures"] = pictures
    return out


def _interval(counts: PictureCounts, config: MetricsConfig) -> dict[str, Any] | None:
    found: Interval | None = miou_interval(
        counts, config.absent, resamples=config.bootstrap, seed=config.bootstrap_seed
    )
    return None if found is None else found.as_dict()


def _error(
    errors: npt.NDArray[np.float64], areas: PictureCounts, index: int, class_names: Sequence[str]
) -> dict[str, Any]:
    """Means over pictures, as the papers of glass and mirror segmentation have them; NaN (all ignored) left out."""
    own = areas.classes == index
    counts = np.zeros((len(areas), 3), np.int64)
    counts[np.repeat(np.arange(len(areas)), areas.lengths)[own]] = areas.counts[own]
    scored, shows = ~np.isnan(errors), counts[:, 1] > 0
    return {
        "class": class_names[index],
        "MAE": number(float(mean_of(errors))),
        "MAE_where_present": number(float(mean_of(errors[shows]))),
        "MAE_where_absent": number(float(mean_of(errors[~shows]))),
        "IoU_mean_of_pictures": number(float(mean_of(iou_of(counts, "counts_as_one")[scored]))),
        "pictures": int(scored.sum()),
        "pictures_with_class": int(shows.sum()),
    }
