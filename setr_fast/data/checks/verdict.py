"""What the ids of a split mean once the classes are known: faults, warnings, and shares of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from setr_fast.data.checks.inspection import Inspection as Inspection
from setr_fast.data.checks.report import Report, SplitFacts
from setr_fast.data.classes import BINARY_REMEDY, IGNORED
from setr_fast.data.faults import Fault, some
from setr_fast.data.masks import MaskReader, mask_path
from setr_fast.data.options import DataConfig

_MUCH_255 = 0.3
"""Share of pixels with the id 255 from which a split is worth a warning."""


@dataclass
class _Suspects:
    """Masks of one kind: the first, and how many."""

    first: Path | None = None
    count: int = 0

    def add(self, mask: Path) -> None:
        self.first = mask if self.first is None else self.first
        self.count += 1


def judge(
    config: DataConfig,
    report: Report,
    facts: SplitFacts,
    inspections: Iterable[Inspection],
    largest_file: Path | None,
) -> None:
    """Add what the ids of a split mean, once the classes are known, to facts and faults. Keeps no inspection."""
    reader = MaskReader.of(config, report.classes) if report.classes is not None else None
    totals: Counter[int] = Counter()
    judged, inspected = 0, 0
    suspects = {"binary": _Suspects(), "ignored": _Suspects(), "palette": _Suspects()}
    sizes: list[tuple[int, int]] = []
    for inspection in inspections:
        inspected += 1
        report.faults += inspection.faults
        if inspection.size:
            sizes = _extremes([*sizes, inspection.size])
        if reader is None or inspection.counts is None:
            continue
        mask = mask_path(inspection.sample)
        fault = reader.judge(mask, inspection.counts)
        if fault is not None:
            report.faults.append(fault)
            continue
        judged += 1
        totals.update(inspection.counts)
        used = {int(reader.lookup[value]) for value in inspection.counts}
        if set(inspection.counts) == {0, 255} and reader.lookup[255] == IGNORED:
            suspects["binary"].add(mask)
        if used == {IGNORED}:
            suspects["ignored"].add(mask)
        if _palette_disagrees(reader, inspection.colours):
            suspects["palette"].add(mask)
    if sizes:
        facts.smallest, facts.largest = sizes[0], sizes[-1]
    pixels = sum(totals.values())
    if reader is not None and pixels:
        trained: Counter[int] = Counter()
        for value, count in totals.items():
            trained[int(reader.lookup[value])] += count
        facts.class_pixels = [trained[index] for index in range(reader.classes.num_classes)]
        facts.ignored_share = trained[IGNORED] / pixels
        facts.share_255 = totals[255] / pixels
        if trained[IGNORED] == pixels and judged == inspected and facts.name in (config.train_split, config.val_split):
            report.faults.append(_all_ignored(config, report, facts.name, suspects))
            return
    report.faults += _warnings(config, report, facts, suspects, largest_file)


def _extremes(sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the smallest and the largest size, by pixels."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return [ordered[0], ordered[-1]]


def _all_ignored(config: DataConfig, report: Report, split: str, suspects: Mapping[str, _Suspects]) -> Fault:
    purpose = "learn from" if split == config.train_split else "score"
    what = f"split '{split}' must label some pixels, got ignored ones only: nothing to {purpose} in split {split}"
    remedy = "label it, or correct what is ignored (class table, --data.ignore-index, --data.label-offset)"
    return Fault(report.root, what, BINARY_REMEDY if suspects["binary"].count else remedy)


def _palette_disagrees(reader: MaskReader, colours: Mapping[int, tuple[int, ...]]) -> bool:
    """Return whether a mask's palette shows some id in the colour that the class table gives to another class."""
    classes = reader.classes
    if not classes.coloured or len(set(classes.palette)) < classes.num_classes:
        return False
    owner = {colour: index for index, colour in enumerate(classes.palette)}
    for value, colour in colours.items():
        index = int(reader.lookup[value])
        if index < classes.num_classes and owner.get((colour[0], colour[1], colour[2]), index) != index:
            return True
    return False


def _warnings(
    config: DataConfig,
    report: Report,
    facts: SplitFacts,
    suspects: Mapping[str, _Suspects],
    largest_file: Path | None,
) -> list[Fault]:
    said = {
        "binary": (
            "mask should use 255 for 'ignore' only, got the ids 0 and 255 alone",
            f"if 255 is meant as a class, {BINARY_REMEDY}",
        ),
        "ignored": ("mask should have pixels to learn from, got ignored ones only", "remove the pair, or label it"),
        "palette": (
            "palette should show the class table's colours, got ids in the colour of another class",
            "compare the ids with the class table: the ids count, not the colours",
        ),
    }
    faults = []
    for kind, (what, remedy) in said.items():
        found = suspects[kind]
        if found.first is not None:
            others = f" (and so do {found.count - 1} more masks of '{facts.name}')" if found.count > 1 else ""
            faults.append(Fault(found.first, what + others, remedy, "warning"))
    ignores_255 = report.classes is not None and (
        report.classes.lookup(config.label_offset, config.ignore_index)[255] == IGNORED
    )
    if ignores_255 and facts.share_255 is not None and facts.share_255 > _MUCH_255:
        what = f"split '{facts.name}' should label most pixels, got the id 255 in {facts.share_255:.0%} of them"
        faults.append(Fault(report.root, what, "check that 255 means 'ignore' here", "warning"))
    training = facts.name in (config.train_split, "train", "training") or len(report.splits) == 1
    if training and facts.class_pixels and report.classes is not None and 0 in facts.class_pixels:
        absent = [name for name, count in zip(report.classes.names, facts.class_pixels, strict=True) if not count]
        what = f"split '{facts.name}' should show every class, got no pixel of {some(absent)}"
        remedy = "add pictures that show them"
        if largest_file is not None:
            what += f" (classes were counted up to the largest id, which is in {largest_file})"
            remedy = "correct that mask, or give a class table"
        faults.append(Fault(report.root, what, remedy, "warning"))
    return faults
