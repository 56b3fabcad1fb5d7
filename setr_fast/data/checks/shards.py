"""Everything that is wrong with shards: each is fetched and read once, from its first sample to its last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from setr_fast.data.checks.report import Report, SplitFacts
from setr_fast.data.checks.verdict import Inspection, judge
from setr_fast.data.classes import ClassTable
from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats.decode import load_mask, read_image
from setr_fast.data.layouts.folder import Sample
from setr_fast.data.masks import MaskReader, histogram
from setr_fast.data.options import DataConfig
from setr_fast.data.shards.fetch import is_address
from setr_fast.data.shards.index import Endings, ShardIndex, read_index
from setr_fast.data.shards.source import (
    THREADS,
    cache_of,
    named,
    no_classes,
    shards_of,
    size_fault,
    stated_shard_classes,
)
from setr_fast.errors import ConfigError


def check_shards(config: DataConfig, progress: Callable[[int, int], None] | None = None) -> Report:
    """Read every sample of both splits and report all that is wrong, as ``check_folder`` does for a folder.

    ``progress`` is called with (shards done, shards in all).
    """
    assert config.shards is not None
    lists = {split: shards_of(config, split) for split in _splits(config)}
    report = Report(Path(config.shards))
    try:
        report.classes = stated_shard_classes(config, config.train_split)
    except FaultError as error:
        report.faults.append(error.fault)
    if report.classes is None:
        report.faults.append(no_classes(lists[config.train_split].base))
    cache, endings = cache_of(config), Endings(config.shard_picture.lower(), config.shard_mask.lower())
    done, total = 0, sum(len(listed.shards) for listed in lists.values())
    for split, listed in lists.items():
        facts = SplitFacts(split, 0)
        report.splits.append(facts)
        inspected: list[Inspection] = []
        for shown, size, count in zip(listed.shards, listed.sizes, listed.counts, strict=True):
            try:
                index = read_index(shown, cache.local(shown, size), endings)
            except FaultError as error:
                report.faults.append(error.fault)
            except FileNotFoundError:
                report.faults.append(Fault(shown, "shard must exist, got no such file", "correct the pattern"))
            else:
                if count not in (None, len(index)):
                    rule = f"shard must hold {count} samples as its index says, got {len(index)}"
                    report.faults.append(Fault(shown, rule, "fetch it again, or write index and shards again"))
                inspected += _inspected(config, report.classes, index)
            done += 1
            if progress is not None:
                progress(done, total)
        facts.pairs = len(inspected)
        known = len(report.faults)
        judge(config, report, facts, inspected, None)
        report.faults[known:] = [_restored(fault) for fault in report.faults[known:]]
    return report


def _splits(config: DataConfig) -> Sequence[str]:
    """Return the splits that the options name: the one to validate on may be missing where a pattern is given."""
    try:
        shards_of(config, config.val_split)
    except ConfigError:
        return [config.train_split]
    return list(dict.fromkeys((config.train_split, config.val_split)))


def _inspected(config: DataConfig, classes: ClassTable | None, index: ShardIndex) -> list[Inspection]:
    reader = MaskReader.of(config, classes) if classes is not None else None

    def inspect(number: int) -> Inspection:
        names, files = index.members(number), index.read(number)
        result = Inspection(Sample(index.name(number), Path(names[0]), Path(names[1])), [])
        try:
            with named(names[0]):
                pixels = read_image(names[0], config.max_pixels, files[0])
            result.size = pixels.shape[0], pixels.shape[1]
        except FaultError as error:
            result.faults.append(error.fault)
        try:
            with named(names[1]):
                path = Path(names[1])
                mask = load_mask(path, config.max_pixels, files[1]) if reader is None else reader.load(path, files[1])
            result.counts = histogram(mask.ids)
            if result.size not in (None, mask.ids.shape):
                result.faults.append(size_fault(names, result.size or (), mask.ids.shape))
        except FaultError as error:
            result.faults.append(error.fault)
        return result

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(inspect, range(len(index))))


def _restored(fault: Fault) -> Fault:
    """Return the fault with an address as it was: as a path it loses a stroke."""
    text = str(fault.path)
    head, mark, rest = text.partition(":/")
    whole = f"{head}://{rest}"
    return replace(fault, path=whole) if mark and is_address(whole) and not rest.startswith("/") else fault
