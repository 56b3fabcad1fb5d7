"""The outcome of a check: facts about each split, and what is wrong with which file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from setr_fast.data.classes import ClassTable
from setr_fast.data.faults import Fault, some


@dataclass
class SplitFacts:
    """What a split consists of. Shares are of all pixels of readable masks, or none where they were not counted.

    Units: sizes are height and width in pixels, (0, 0) where no picture was readable.
    """

    name: str
    pairs: int
    listing: Path | None = None
    smallest: tuple[int, int] = (0, 0)
    """The picture with the fewest pixels, upright."""
    largest: tuple[int, int] = (0, 0)
    """The picture with the most pixels, upright."""
    class_pixels: list[int] = field(default_factory=list)
    ignored_share: float | None = None
    share_255: float | None = None


@dataclass
class Report:
    """Findings of a check. ``strays`` are those among ``faults`` that do not stand in the way of training."""

    root: Path
    classes: ClassTable | None = None
    splits: list[SplitFacts] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    strays: list[Fault] = field(default_factory=list)

    @property
    def errors(self) -> list[Fault]:
        """Faults that make ``data check`` fail."""
        return [fault for fault in self.faults if fault.severity == "error"]

    @property
    def warnings(self) -> list[Fault]:
        """Faults that are only pointed out."""
        return [fault for fault in self.faults if fault.severity == "warning"]


def format_report(report: Report, most: int = 200) -> str:
    """Return a report as lines for a terminal; at most ``most`` faults are written out."""
    classes = "unknown classes" if report.classes is None else f"{report.classes.num_classes} classes"
    lines = [f"{report.root}: {classes}"]
    for facts in report.splits:
        lines.append(f"  {facts.name}: {', '.join(_facts(facts))}")
        if report.classes is not None and facts.class_pixels:
            whole = sum(facts.class_pixels) or 1
            shares = [
                f"{name} {pixels / whole:.1%}"
                for name, pixels in zip(report.classes.names, facts.class_pixels, strict=True)
            ]
            lines.append("    " + some(shares, 12))
    ordered = report.errors + report.warnings
    lines += [f"{fault.severity}: {fault.line()}" for fault in ordered[:most]]
    if len(ordered) > most:
        lines.append(f"... and {len(ordered) - most} more")
    counts = f"{_count(report.errors, 'error')}, {_count(report.warnings, 'warning')}"
    lines.append(counts if ordered else "no faults found")
    return "\n".join(lines)


def _facts(facts: SplitFacts) -> list[str]:
    """Return what is known of a split, in words."""
    known = [f"{facts.pairs} pairs"]
    (low_h, low_w), (high_h, high_w) = facts.smallest, facts.largest
    if facts.largest != (0, 0):
        smallest = "" if facts.smallest == facts.largest else f"{low_w} x {low_h} .. "
        known.append(f"{smallest}{high_w} x {high_h} pixels")
    if facts.ignored_share is not None:
        known.append(f"{facts.ignored_share:.1%} ignored")
    if facts.share_255 is not None:
        known.append(f"{facts.share_255:.1%} have the id 255")
    if facts.listing is not None:
        known.append(f"listed in {facts.listing.name}")
    return known


def _count(faults: list[Fault], word: str) -> str:
    return f"{len(faults)} {word}" + ("" if len(faults) == 1 else "s")
