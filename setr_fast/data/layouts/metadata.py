"""Folders with a ``metadata.jsonl``, as the ``imagefolder`` and ``maskfolder`` builders of ``datasets`` read them.

One line per sample, each path below the folder of the file itself::

    {"file_name": "0001.jpg", "label_file_name": "0001.png"}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from setr_fast.data.faults import Fault
from setr_fast.data.layouts.folder import Sample, Scan
from setr_fast.data.layouts.lists import leads_outside, split_name

NAME = "metadata.jsonl"
_PICTURES = ("file_name", "image_file_name", "image")
_MASKS = ("label", "mask", "annotation", "segmentation", "labels", "semantic_mask")
_MASK_KEYS = tuple(f"{key}{end}" for key in _MASKS for end in ("_file_name", ""))


def metadata_file(root: Path, split: str) -> Path | None:
    """Return the metadata of a split, if it has such a file."""
    return next((path for path in (root / split / NAME, root / "data" / split / NAME) if path.is_file()), None)


def metadata_splits(root: Path) -> list[str]:
    """Return the splits that have such a file."""
    folders = [root, root / "data"]
    return sorted({path.parent.name for folder in folders if folder.is_dir() for path in folder.glob(f"*/{NAME}")})


def scan_metadata(path: Path, root: Path) -> Scan:
    """Return the samples that the lines name; a line that cannot be used is a fault."""
    found = Scan(listing=path)
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found.faults.append(Fault(path, f"must be readable UTF-8, got '{type(error).__name__}'", "save it again"))
        return found
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        sample, wrong = _sample(path.parent, root, line)
        if sample is not None and sample.name in seen:
            wrong = f"name a sample once, got '{sample.name}' again after line {seen[sample.name]}"
        if wrong or sample is None:
            found.faults.append(Fault(path, f"line {number} must {wrong}", "correct or remove the line"))
            continue
        seen[sample.name] = number
        found.samples.append(sample)
    if not lines:
        found.faults.append(Fault(path, "must name at least one sample, got none", "add lines, or remove the file"))
    return found


def _sample(folder: Path, root: Path, line: str) -> tuple[Sample | None, str]:
    """Return a line's sample, or the rule that it breaks."""
    try:
        entry: Any = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        return None, f"be a JSON object, got {line[:60]!r}"
    paths = []
    for what, keys in (
        ("picture", _PICTURES),
        ("mask", [f"{key}{end}" for key in _MASKS for end in ("_file_name", "")]),
    ):
        key = next((key for key in keys if isinstance(entry.get(key), str)), None)
        if key is None:
            return None, f"name its {what}, as '{keys[0]}', got {', '.join(map(str, entry)) or 'nothing'}"
        text = entry[key]
        if wrong := leads_outside(text):
            return None, f"{wrong}, got '{text}'"
        target = folder / text
        inside = os.path.realpath(root)
        if os.path.commonpath([inside, os.path.realpath(target)]) != inside:
            return None, f"stay below the data folder, got '{text}', a link that leads outside"
        if not target.is_file():
            return None, f"name files that are there, got '{text}'"
        paths.append(target)
    name = split_name(str(Path(entry[next(k for k in _PICTURES if isinstance(entry.get(k), str))])))[0]
    return Sample(name.replace("/", "_"), paths[0], paths[1]), ""
