"""One thing that is wrong with one file: where, what, and the way out, always on one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from setr_fast.errors import DataError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Fault:
    """A finding about a file; ``what`` says rule and value, ``remedy`` what to do about it."""

    path: Path | str
    what: str
    remedy: str
    severity: Severity = "error"

    def line(self) -> str:
        """Return ``<file>: <what>; <remedy>`` without line breaks, whatever the file is called."""
        return one_line(f"{self.path}: {self.what}; {self.remedy}")


class FaultError(DataError):
    """A DataError that still knows file, finding and remedy apart."""

    def __init__(self, fault: Fault, more: int = 0, root: Path | None = None) -> None:
        count = "1 more fault" if more == 1 else f"{more} more faults"
        rest = f" ({count}: run `setr-fast data check {root or 'DIR'}`)" if more else ""
        super().__init__(fault.line() + one_line(rest))
        self.fault = fault
        self.more = more
        self.root = root

    def __reduce__(self) -> tuple[type[FaultError], tuple[Fault, int, Path | None]]:
        # The default would hand the message to __init__: errors must survive the way out of a worker process.
        return FaultError, (self.fault, self.more, self.root)


def one_line(text: str) -> str:
    """Return ``text`` with control characters and undecodable file-name bytes written as escapes."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def has_control(text: str) -> bool:
    """Return whether text holds line breaks, tabs, NUL or other control characters."""
    return any(letter < " " or letter == "\x7f" for letter in text)


def some(items: list[str], most: int = 5) -> str:
    """Return the first few items as prose: ``a, b, c and 7 more``."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
