"""Pictures of a data set with their truth and a model's prediction side by side, to look at while training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import nn

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.overlay import legend, overlay
from setr_fast.engine.predictor import predict
from setr_fast.files import atomic_write

if TYPE_CHECKING:
    from setr_fast.data.source import Source

_GAP_PX = 4


def write_gallery(model: nn.Module, source: Source, config: InferenceConfig, folder: Path, *, count: int) -> list[Path]:
    """Write ``count`` samples, evenly spread over the source, as picture, truth and prediction in a row with a legend.

    Returns: the files, named by their place in the source.
    """
    count = min(count, len(source))
    palette, names = source.classes.palette, source.classes.names
    written = []
    for index in (i * len(source) // count for i in range(count)):
        image, label = source.read(index)
        predicted = predict(model, image, config)
        image = image[..., :3]
        gap = np.full((image.shape[0], _GAP_PX, 3), 255, np.uint8)
        row = np.concatenate(
            [image, gap, overlay(image, label, palette), gap, overlay(image, predicted, palette)], axis=1
        )
        present = [int(i) for i in np.union1d(np.unique(label), np.unique(predicted)) if i < len(names)]
        strip = legend(row.shape[1], [(names[i], palette[i]) for i in present])
        path = folder / f"{index:05d}.png"
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate([row, strip])).save(buffer, "PNG")
        atomic_write(path, buffer.getvalue())
        written.append(path)
    return written
