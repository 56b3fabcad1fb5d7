"""The outcome of a check: facts about each split, and what is wrong with which file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from setr_fast.data.classes import ClassTable
from setr_fast.data.faults import Fault, some


@dataclass
class SplitFacts:
    """What a split consists of. Shares are of all pixels of readable masks."""

    name: str
    pairs: int
    listing: Path | None = None
    smallest: tuple[int, int] = (0, 0)
    """Height and width of the picture with the fewest pixels."""
    largest: tuple[int, int] = (0, 0)
    class_pixels: list[int] = field(default_factory=list)
    ignored_share: float = 0.0
    share_255: float = 0.0


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
        (low_h, low_w), (high_h, high_w) = facts.smallest, facts.largest
        size = f"{low_w} x {low_h}" if facts.smallest == facts.largest else f"{low_w} x {low_h} .. {high_w} x {high_h}"
        lines.append(
            f"  {facts.name}: {facts.pairs} pairs, {size} pixels, "
            f"{facts.ignored_share:.1%} ignored, {facts.share_255:.1%} have the id 255"
            + (f", listed in {facts.listing.name}" if facts.listing is not None else "")
        )
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


def _count(faults: list[Fault], word: str) -> str:
    return f"{len(faults)} {word}" + ("" if len(faults) == 1 else "s")
