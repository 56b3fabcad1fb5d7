"""Where sliding windows start, by the rules of the published code bases."""

from __future__ import annotations

from typing import Literal

from setr_fast.errors import ConfigError

WindowRule = Literal["mmseg", "segmenter", "paddleseg"]


def window_starts(length: int, window: int, stride: int, rule: WindowRule = "mmseg") -> list[int]:
    """Return where the windows along one axis start, in pixels. An axis shorter than the window has one, at 0.

    mmseg: every ``stride`` pixels, the last one moved back to end at the picture's end (official SETR,
    mmsegmentation `encoder_decoder.py`). segmenter: every ``stride`` pixels while more than a window is left, and one
    at the end (official Segmenter `segm/model/utils.py`). paddleseg: ``ceil((length - window) / stride) + 1`` windows,
    the last moved back.

    Raises: ConfigError if the stride is not positive, or larger than the window: pixels in between had no class.
    """
    if not 1 <= stride <= window:
        raise ConfigError(
            f"slide: stride must be 1 to the window's size of {window}, got {stride}; "
            "pixels between windows would have no class"
        )
    room = length - window
    if rule == "segmenter":
        return [*range(0, room, stride), max(room, 0)]
    if rule == "paddleseg":
        count = 1 if room <= 0 else -(-room // stride) + 1
    elif rule == "mmseg":
        count = max(room + stride - 1, 0) // stride + 1
    else:
        raise ConfigError(f"slide: rule must be mmseg, segmenter or paddleseg, got {rule!r}; mmseg is the usual one")
    return [max(min(index * stride + window, length) - window, 0) for index in range(count)]
