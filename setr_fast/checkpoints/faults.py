"""Why a file is refused, in words; the reader puts the file's name in front."""

from __future__ import annotations

AGAIN = "copy or download the file again"
DISTRUST = "nothing of it was run; use only files whose maker you know"


class Unusable(Exception):
    """The file's content breaks a rule: ``what`` (rule and value) and ``remedy``."""

    def __init__(self, what: str, remedy: str = AGAIN) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def shortened(value: object, limit: int = 120) -> str:
    """Return a value of the file as one printable line of bounded length."""
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[:limit] + "..."
