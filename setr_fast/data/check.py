"""Everything that is wrong with a data folder, found before training rather than during it.

Errors keep a sample from being used; a warning says what may be meant otherwise. Warnings of one kind are
gathered per split: the first file is named, the others counted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from setr_fast.data.classes import ClassTable
from setr_fast.data.decode import image_header, load_mask, mask_header, read_image
from setr_fast.data.faults import Fault as Fault
from setr_fast.data.faults import FaultError
from setr_fast.data.folder import Sample, Scan, scan_split
from setr_fast.data.known import known_set
from setr_fast.data.layouts import find_layout, find_splits, has_masks
from setr_fast.data.masks import MaskReader, histogram
from setr_fast.data.options import DataConfig
from setr_fast.data.report import Report as Report
from setr_fast.data.report import SplitFacts
from setr_fast.data.report import format_report as format_report
from setr_fast.data.shard_check import check_shards
from setr_fast.data.source import (
    THREADS,
    classes_of_ids,
    count_classes,
    data_root,
    largest_training_id,
    size_fault,
    stated_classes,
)
from setr_fast.data.verdict import Inspection, judge
from setr_fast.errors import EXIT_DATA, EXIT_OK

logger = logging.getLogger("setr_fast")

Level = Literal["full", "headers", "off"]


def check_folder(
    config: DataConfig | Path | str,
    splits: Sequence[str] | None = None,
    level: Level = "full",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read every file of a data folder and report all that is wrong with it.

    ``splits``: those to look at, else all that are found, and those to train and validate on, which then must be there.
    ``level``: full decodes every file, headers reads the
    first bytes, off looks at names only. ``progress`` is called with (files done, files in all).
    """
    if not isinstance(config, DataConfig):
        config = DataConfig(root=Path(config))
    assert config.root is not None, "the built-in scenes need no check"
    root = data_root(config)
    report = Report(root)
    flags = _flags(config)
    named = list(splits) if splits is not None else _every_split(root, flags, report)
    if not named:
        return report
    table_is_bad = False
    try:
        report.classes = stated_classes(config)
    except FaultError as error:
        report.faults.append(error.fault)
        table_is_bad = True
    scans = {
        split: scan_split(root, split, config.mask_suffix, config.picture_suffix, flags.get(split, ""))
        for split in named
    }
    for split, scan in scans.items():
        optional = splits is None and split not in flags
        if optional and not has_masks(root, split):
            where = scan.faults[0]
            scan.faults = [Fault(where.path, where.what, "leave it so if the split is for predict only", "warning")]
        report.faults += scan.faults + scan.strays
        report.strays += scan.strays
    reader = MaskReader.of(config, report.classes) if report.classes is not None else None
    job = partial(_inspect, config, reader, table_is_bad, level)
    inspected = _run(job, scans, progress)
    largest_file: Path | None = None
    if report.classes is None and not table_is_bad and level == "full":
        report.classes, largest_file = _counted(config, inspected, report)
    for split, scan in scans.items():
        facts = SplitFacts(split, len(scan.samples), scan.listing)
        report.splits.append(facts)
        judge(config, report, facts, inspected[split], largest_file)
        report.faults += _not_all(config, root, facts)
    return report


def _not_all(config: DataConfig, root: Path, facts: SplitFacts) -> list[Fault]:
    """Return a warning where a split of a known set has another number of pairs than was published."""
    published = known_set(config.dataset).counts.get(facts.name) if config.dataset is not None else None
    if published in (None, facts.pairs):
        return []
    rule = f"split '{facts.name}' of {config.dataset} should have {published} pairs, got {facts.pairs}"
    return [Fault(root, rule, "unpack the archives again if they are meant to be whole", "warning")]


def _flags(config: DataConfig) -> dict[str, str]:
    """Return the splits that training needs, with the options that name them."""
    return {config.val_split: "--data.val-split", config.train_split: "--data.train-split"}


def _every_split(root: Path, flags: dict[str, str], report: Report) -> list[str]:
    """Return all splits of a data folder; that one is missing which training needs is a fault of the report."""
    found = find_splits(root)
    if found and not any(split in flags or has_masks(root, split) for split in found):
        return found  # pictures without masks, for predict
    for split in reversed(flags):
        if split in found:
            continue
        try:
            find_layout(root, split, flags[split])
            found.append(split)  # made of a split list that has no usual name
        except FaultError as error:
            report.faults += [error.fault] if error.fault not in report.faults else []
    return found


def _run(
    job: Callable[[Sample], Inspection], scans: Mapping[str, Scan], progress: Callable[[int, int], None] | None
) -> dict[str, list[Inspection]]:
    """Inspect all samples in threads; results come back in the samples' order."""
    total, done = sum(len(scan.samples) for scan in scans.values()), 0
    inspected: dict[str, list[Inspection]] = {split: [] for split in scans}
    with ThreadPoolExecutor(THREADS) as pool:
        for split, scan in scans.items():
            for inspection in pool.map(job, scan.samples):
                inspected[split].append(inspection)
                done += 1
                if progress is not None:
                    progress(done, total)
    return inspected


def _inspect(
    config: DataConfig, reader: MaskReader | None, table_is_bad: bool, level: Level, sample: Sample
) -> Inspection:
    result = Inspection(sample, [])
    assert sample.mask is not None
    if level == "off":
        return result
    mask_size = None
    rgb = config.mask_colours == "rgb"
    try:
        if level == "full":
            pixels = read_image(sample.image, config.max_pixels)
            result.size = pixels.shape[0], pixels.shape[1]
        else:
            header = image_header(sample.image, config.max_pixels)
            result.size = header.height, header.width
    except FaultError as error:
        result.faults.append(error.fault)
    try:
        if level == "headers" or (rgb and table_is_bad):
            header = mask_header(sample.mask, config.max_pixels, colours=rgb)
            mask_size = header.height, header.width
        else:
            mask = reader.load(sample.mask) if reader is not None else load_mask(sample.mask, config.max_pixels)
            mask_size = mask.ids.shape[0], mask.ids.shape[1]
            result.counts = histogram(mask.ids)
            if mask.palette is not None:
                result.colours = {value: tuple(map(int, mask.palette[value])) for value in result.counts}
    except FaultError as error:
        result.faults.append(error.fault)
    if result.size is not None and mask_size is not None:
        fault = size_fault(sample, result.size, mask_size)
        result.faults += [fault] if fault is not None else []
    return result


def _counted(
    config: DataConfig, inspected: Mapping[str, list[Inspection]], report: Report
) -> tuple[ClassTable | None, Path | None]:
    """Count the classes as ``open_source`` does; also return the mask with the largest id.

    What was read already is not read again: the training split counts, which is nearly always among it.
    """
    root = data_root(config)
    if config.train_split not in inspected and has_masks(root, config.train_split):
        try:
            return count_classes(config, config.train_split), None
        except FaultError as error:
            report.faults.append(error.fault)
            return None, None
    split = config.train_split if inspected.get(config.train_split) else next(iter(inspected))
    largest = {
        inspection.sample.mask: largest_training_id(config, list(inspection.counts))
        for inspection in inspected[split]
        if inspection.counts is not None and inspection.sample.mask is not None
    }
    if not largest:
        return None, None
    try:
        return classes_of_ids(root, split, largest), max(largest, key=lambda mask: (largest[mask], str(mask)))
    except FaultError as error:
        report.faults.append(error.fault)
        return None, None


def check_command(config: DataConfig) -> int:
    """Print what a check of ``config.root`` finds; return the exit code, 3 if there is any error."""

    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} pairs", end=end, file=sys.stderr, flush=True)

    told = show if sys.stderr.isatty() else None
    report = check_shards(config, told) if config.shards is not None else check_folder(config, progress=told)
    print(format_report(report), flush=True)
    return EXIT_DATA if report.errors else EXIT_OK


def verify(config: DataConfig, splits: Sequence[str] | None = None, level: Level | None = None) -> Report | None:
    """Check the splits that a run uses, before its first step; return what is known of them.

    ``classes`` of the report are for ``open_source``, so that no mask is read twice to count them; they are missing
    where level headers leaves them to be counted. Built-in scenes pass, as does everything at level off, without a
    report.

    Raises: DataError with one line: the first faulty file, what to do, and how many faults more there are.
    """
    level = config.check if level is None else level
    if config.root is None or level == "off":
        return None
    wanted = list(dict.fromkeys(splits if splits is not None else (config.train_split, config.val_split)))
    report = check_folder(config, wanted, level)
    blocking = [fault for fault in dict.fromkeys(report.errors) if fault not in report.strays]
    if blocking:
        raise FaultError(blocking[0], len(blocking) - 1, config.root)
    for fault in report.strays + report.warnings:
        logger.warning("%s", fault.line())
    return report
