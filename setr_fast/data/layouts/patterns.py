"""Official layouts that are more than two folders of equal stems: samples found by patterns of paths."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from setr_fast.data.faults import Fault
from setr_fast.data.layouts.folder import Sample, Scan
from setr_fast.data.layouts.known import Files
from setr_fast.data.layouts.lists import key_of, read_split_list, split_name


def serves(files: Files, root: Path, split: str) -> bool:
    """Return whether any picture of the split lies like this."""
    if files.splits and split not in files.splits:
        return False
    if files.listing and not (root / files.listing.format(split=split)).is_file():
        return False
    return next(_pictures(files, root, split), None) is not None


def _pictures(files: Files, root: Path, split: str) -> Iterator[Path]:
    pattern = _any_case(files.picture.format(split=glob.escape(split)))
    return (path for path in root.glob(pattern) if not path.name.startswith("."))


def _any_case(pattern: str) -> str:
    """Return a pattern whose suffix may be in capitals: cameras and old archives write .JPG."""
    stem, dot, suffix = pattern.rpartition(".")
    if not dot or not suffix.isalnum():
        return pattern
    return stem + dot + "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in suffix)


def scan_files(files: Files, root: Path, split: str, *, extra: bool) -> Scan:
    """Return the samples of a split, in order of their paths, and what is missing.

    ``extra``: the further channels are wanted, and must be there.
    """
    pattern = files.picture.format(split=split).split("/")
    fixed = next((place for place, part in enumerate(pattern) if "*" in part), len(pattern))
    scan = Scan()
    for path in sorted(_pictures(files, root, split)):
        inner = path.relative_to(root).parts[fixed:]
        stem = split_name(path.name)[0].removesuffix(files.cut)
        names = list(inner[:-1]) + ([stem] if "*" in pattern[-1] else [])
        place = {"split": split, "inner": "/".join(inner[:-1]), "stem": stem}
        mask, fault = _beside(root, files.mask, place, path, "mask")
        further = None
        if fault is None and extra and files.extra:
            further, fault = _beside(root, files.extra, place, path, "file of further channels")
        if fault is None:
            scan.samples.append(Sample("_".join(names), path, mask, further))
        else:
            scan.faults.append(fault)
    return _listed(files, scan, root / files.listing.format(split=split)) if files.listing else scan


def _beside(root: Path, pattern: str, place: dict[str, str], picture: Path, what: str) -> tuple[Path, Fault | None]:
    """Return the file that belongs to a picture, or what is wrong."""
    if not pattern:
        return picture, None
    wild = "*" in pattern
    text = re.sub("/+", "/", pattern.format(**{k: glob.escape(v) if wild else v for k, v in place.items()}))
    found = sorted(root.glob(_any_case(text))) if wild else [root / text]
    if not wild and not found[0].is_file():
        found = [path for path in (found[0].with_suffix(found[0].suffix.upper()),) if path.is_file()]
    if len(found) == 1:
        return found[0], None
    got = f"{len(found)}, {found[0].name} and {found[1].name}" if found else "none"
    return picture, Fault(picture, f"picture must have one {what} {text}, got {got}", "unpack the archives again")


def _listed(files: Files, scan: Scan, listing: Path) -> Scan:
    entries, faults = read_split_list(listing)
    there = {key_of(sample.name): sample for sample in scan.samples}
    wanted = {key_of(entry.picture) for entry in entries}
    result = Scan(faults=faults, listing=listing)
    result.faults += [
        fault for fault in scan.faults if key_of(split_name(Path(fault.path).name)[0].removesuffix(files.cut)) in wanted
    ]
    missed = {key_of(split_name(Path(fault.path).name)[0].removesuffix(files.cut)) for fault in scan.faults}
    for entry in entries:
        key = key_of(entry.picture)
        if key in there:
            result.samples.append(there[key])
        elif key not in missed:
            rule = f"line {entry.line} must name a picture, got '{entry.picture}' without files"
            result.faults.append(Fault(listing, rule, "add the picture and its mask, or remove the line"))
    return result
