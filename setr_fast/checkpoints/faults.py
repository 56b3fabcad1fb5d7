"""Why a file is refused, in words; the reader puts the file's name in front."""

from __future__ import annotations

import math
import reprlib
from typing import Any

AGAIN = "copy or download the file again"
DISTRUST = "nothing of it was run; use only files whose maker you know"
_MAX_AXES, _MAX_ELEMENTS = 32, 1 << 48
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxtuple, _BRIEF.maxdict = 2, 16, 16, 4


class Unusable(Exception):
    """The file's content breaks a rule: ``what`` (rule and value) and ``remedy``."""

    def __init__(self, what: str, remedy: str = AGAIN) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def shortened(value: object, limit: int = 120) -> str:
    """Return a value of the file as one printable line of bounded length.

    A few bytes may stand for a list that is endlessly long or deep: what is cut off later is not written out first.
    """
    if isinstance(value, int) and value.bit_length() > limit:
        text = f"a number of {value.bit_length()} bits"
    elif isinstance(value, (list, tuple, dict, set, frozenset)):
        text = _BRIEF.repr(value)
    else:
        text = value[: 10 * limit] if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[:limit] + "..."


def is_shape(values: Any) -> bool:
    """Say whether values are the sides of an array that NumPy and PyTorch can hold, empty ones included."""
    if not isinstance(values, (list, tuple)) or len(values) > _MAX_AXES:
        return False
    sound = all(type(side) is int and 0 <= side < _MAX_ELEMENTS for side in values)
    return sound and math.prod(max(side, 1) for side in values) < _MAX_ELEMENTS
