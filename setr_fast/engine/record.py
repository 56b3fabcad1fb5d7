"""Everything that belongs to a result besides its scores: how it was made, of what, how fast."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from setr_fast import __version__
from setr_fast.engine.checkpoints import data_sha256, settings_sha256, weights_sha256
from setr_fast.metrics.options import MetricsConfig
from setr_fast.metrics.result import FORMAT
from setr_fast.metrics.summary import summary
from setr_fast.metrics.tally import Tally

if TYPE_CHECKING:
    from setr_fast.data.source import Source


def record(
    tally: Tally,
    scoring: MetricsConfig,
    class_names: Sequence[str],
    source: Source,
    *,
    folder: Path,
    split: str,
    place: torch.device,
    seconds: float,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a result as JSON can hold it; docs/metrics.md says what each entry is.

    ``folder`` is the checkpoint's; ``settings`` are dataclasses or plain values by name.
    """
    plain = {name: _plain(value) for name, value in settings.items()}
    scores = summary(tally, class_names, [source.names[index] for index in tally.pictures], scoring)
    pictures = scores.pop("pictures")
    return {
        "format": FORMAT,
        **scores,
        "images": len(tally),
        "seconds": seconds,
        "images_per_second": len(tally) / seconds,
        "split": split,
        "checkpoint": str(folder),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "settings": plain,
        "sha256": {
            "weights": weights_sha256(folder),
            "data": data_sha256(source),
            "settings": settings_sha256(plain),
        },
        "versions": {
            "setr_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "pictures": pictures,
    }


def _plain(options: Any) -> Any:
    def told(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return str(value)

    return json.loads(json.dumps(options, default=told))
