"""The probability of one class at every pixel, for scores that look at more than the answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.pictures import Picture, as_pixels
from setr_fast.engine.predictor import channels_of, predict_scores, settled


def class_probability(
    model: nn.Module,
    image: Picture,
    index: int,
    config: InferenceConfig | None = None,
    *,
    out_size: tuple[int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the softmax probability of class ``index`` at the picture's own upright size (or at ``out_size``).

    What is resized, averaged and mirrored in which order is what ``predict`` does; of two classes, class 1 is its
    answer where this is above one half.

    Shapes: image as for ``predict``; -> [H, W].
    """
    config = settled(config, model)
    pixels = as_pixels(image, channels_of(model))
    size = out_size or (pixels.shape[0], pixels.shape[1])
    probability = np.empty(size, np.float32)
    averaged = config.merge == "probabilities" and len(config.scales) * (2 if config.flip else 1) > 1

    def take(first: int, scores: Tensor) -> None:
        share = scores[index] if averaged else scores.softmax(0)[index]
        probability[first : first + share.shape[0]] = share.cpu().numpy()

    predict_scores(model, pixels.numpy(), config, out_size=size, take_rows=take)
    return probability
