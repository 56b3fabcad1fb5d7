"""Everything that is wrong with a data folder, found before training rather than during it.

Errors keep a sample from being used; a warning says what may be meant otherwise. Warnings of one kind are
gathered per split: the first file is named, the others counted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from setr_fast.data.checks.inspection import Inspector, Level
from setr_fast.data.checks.journal import Journal
from setr_fast.data.checks.report import Report as Report
from setr_fast.data.checks.report import SplitFacts
from setr_fast.data.checks.report import format_report as format_report
from setr_fast.data.checks.shards import check_shards
from setr_fast.data.checks.verdict import judge
from setr_fast.data.classes import ClassTable
from setr_fast.data.faults import Fault as Fault
from setr_fast.data.faults import FaultError
from setr_fast.data.layouts.folder import Scan
from setr_fast.data.layouts.known import known_set
from setr_fast.data.layouts.scan import data_root, holds, scan, splits_there
from setr_fast.data.layouts.splits import find_layout
from setr_fast.data.masks import mask_path
from setr_fast.data.options import DataConfig
from setr_fast.data.source import classes_of_ids, count_classes, largest_training_id, stated_classes
from setr_fast.errors import EXIT_DATA, EXIT_OK

logger = logging.getLogger("setr_fast")


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
    named = list(splits) if splits is not None else _every_split(config, flags, report)
    if not named:
        return report
    table_is_bad = False
    try:
        report.classes = stated_classes(config)
    except FaultError as error:
        report.faults.append(error.fault)
        table_is_bad = True
    scans = {split: scan(config, split, flags.get(split, "")) for split in named}
    for split, found in scans.items():
        optional = splits is None and split not in flags
        if optional and not holds(config, split):
            where = found.faults[0] if found.faults else Fault(root, f"split '{split}' must have masks, got none", "")
            found.faults = [Fault(where.path, where.what, "leave it so if the split is for predict only", "warning")]
            found.samples = [sample for sample in found.samples if sample.part is None]
        report.faults += found.faults + found.strays
        report.strays += found.strays
    total = sum(len(found.samples) for found in scans.values())
    colours = report.classes if config.mask_colours == "rgb" else None
    journal = Journal(root, Inspector(config, level, colours, table_is_bad), total)
    try:
        for done in journal.fill((sample for found in scans.values() for sample in found.samples), total):
            if progress is not None:
                progress(done, total)
        largest_file: Path | None = None
        if report.classes is None and not table_is_bad and level == "full":
            report.classes, largest_file = _counted(config, scans, journal, report)
        for split, found in scans.items():
            facts = SplitFacts(split, len(found.samples), found.listing)
            report.splits.append(facts)
            judge(config, report, facts, map(journal.find, found.samples), largest_file)
            report.faults += _not_all(config, root, facts, found)
    finally:
        journal.close()
    return report


def _not_all(config: DataConfig, root: Path, facts: SplitFacts, found: Scan) -> list[Fault]:
    """Return a warning where a split of a known set has another number of pairs than was published."""
    if config.dataset is None:
        return []
    known, there, what = known_set(config.dataset), facts.pairs, "pairs"
    published = known.counts.get(facts.name)
    if facts.name in known.volumes:
        published, what = known.volumes[facts.name], "volumes"
        there = len({sample.name.rpartition("_slice")[0] or sample.name for sample in found.samples})
    if published in (None, there):
        return []
    rule = f"split '{facts.name}' of {config.dataset} should have {published} {what}, got {there}"
    return [Fault(root, rule, "unpack the archives again if they are meant to be whole", "warning")]


def _flags(config: DataConfig) -> dict[str, str]:
    """Return the splits that training needs, with the options that name them. Some sets have none to train on."""
    flags = {config.val_split: "--data.val-split", config.train_split: "--data.train-split"}
    known = known_set(config.dataset) if config.dataset is not None else None
    if known is not None and known.files and config.train_split not in known.splits:
        del flags[config.train_split]
    return flags


def _every_split(config: DataConfig, flags: dict[str, str], report: Report) -> list[str]:
    """Return all splits of a data folder; that one is missing which training needs is a fault of the report."""
    root, found = data_root(config), splits_there(config)
    if found and not any(split in flags or holds(config, split) for split in found):
        return found  # pictures without masks, for predict
    for split in reversed(flags):
        if split in found:
            continue
        try:
            if config.dataset is not None and not (scanned := scan(config, split)).samples:
                raise FaultError(scanned.faults[0])
            if config.dataset is None:
                find_layout(root, split, flags[split])
            found.append(split)  # made of a split list that has no usual name
        except FaultError as error:
            report.faults += [error.fault] if error.fault not in report.faults else []
    return found


def _counted(
    config: DataConfig, scans: Mapping[str, Scan], journal: Journal, report: Report
) -> tuple[ClassTable | None, Path | None]:
    """Count the classes as ``open_source`` does; also return the mask with the largest id.

    What was read already is not read again: the training split counts, which is nearly always among it.
    """
    root = data_root(config)
    if config.train_split not in scans and holds(config, config.train_split):
        try:
            return count_classes(config, config.train_split), None
        except FaultError as error:
            report.faults.append(error.fault)
            return None, None
    there = config.train_split in scans and scans[config.train_split].samples
    split = config.train_split if there else next(iter(scans))
    found: tuple[int, str, Path] | None = None
    for sample in scans[split].samples:
        inspection = journal.find(sample)
        if inspection.counts is not None:
            path = mask_path(sample)
            one = largest_training_id(config, list(inspection.counts)), str(path), path
            found = one if found is None else max(found, one)
    if found is None:
        return None, None
    try:
        return classes_of_ids(root, split, {found[2]: found[0]}), found[2]
    except FaultError as error:
        report.faults.append(error.fault)
        return None, None


def check_command(config: DataConfig) -> int:
    """Print what a check of ``config.root`` finds; return the exit code, 3 if there is any error."""
    with progress_bar("checking") as show:
        report = check_shards(config, show) if config.shards is not None else check_folder(config, progress=show)
    print(format_report(report), flush=True)
    return EXIT_DATA if report.errors else EXIT_OK


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what draws the progress on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


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
