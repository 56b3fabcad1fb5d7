"""Samples of a data folder: which mask goes with which picture, and which files predict is to read.

Pictures and masks are paired by stem. Names are plain text: nothing in them is expanded or decoded.
Subfolders are not searched (but Cityscapes' cities are); hidden names and files without a picture's suffix are skipped,
in every command.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from setr_fast.data.faults import Fault, FaultError, some
from setr_fast.data.layouts.lists import Entry, is_picture_name, key_of, leads_outside, read_split_list, split_name
from setr_fast.data.layouts.splits import Layout, find_layout

Stems = Mapping[str, list[Path]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture and the mask that belongs to it. ``name`` is the picture's stem, or its path where stems repeat.

    ``extra``: file of its further channels. ``part``: which of several samples in one file (row of a table, slice of a
    volume); ``image`` is that file then, and ``mask`` the same.
    """

    name: str
    image: Path
    mask: Path | None
    extra: Path | None = None
    part: int | None = None

    @property
    def where(self) -> Path:
        """What messages call the sample's file: with the number of its part."""
        return self.image if self.part is None else Path(f"{self.image}#{self.part}")


@dataclass
class Scan:
    """What the names in a split say.

    ``strays`` do not stop training: masks without a picture, and faults of files that the split list leaves out.
    """

    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    strays: list[Fault] = field(default_factory=list)
    listing: Path | None = None


def scan_split(
    root: Path, split: str, mask_suffix: str = "", picture_suffix: str = "", flag: str = "", arrays: bool = False
) -> Scan:
    """Return the samples of a split together with all that is wrong with its names. Opens no picture.

    ``flag``: the option that named the split, for the message if it is not there. ``arrays``: pictures may be .npy.
    """
    try:
        layout = find_layout(root, split, flag)
        pictures = by_stem(layout.images, layout.nested, cut=picture_suffix, arrays=arrays)
        # Where pictures have an end of their own, other files share the folders (Cityscapes: colours, instances).
        masks = by_stem(layout.masks, layout.nested, only=mask_suffix if picture_suffix else "")
    except FaultError as error:
        return Scan(faults=[error.fault])
    paired, unpaired, orphans = _pair(pictures, masks, mask_suffix, layout)
    if layout.listing is not None:
        return _listed_only(Path(root), layout, paired, unpaired, orphans)
    faults = [unpaired[key] for key in sorted(unpaired)]
    if not pictures:
        inside = some(sorted(os.listdir(layout.images)), 3) or "nothing"
        rule = f"folder must hold pictures, got {inside}"
        faults.append(Fault(layout.images, rule, "put .jpg or .png files directly into it"))
    elif len(pictures) > 1 and masks and not any(key_of(stem + mask_suffix) in masks for stem in pictures):
        faults = [_nothing_fits(pictures, masks, layout, mask_suffix)]
        orphans = []
    return Scan([paired[key] for key in sorted(paired)], faults, orphans)


def _listed_only(
    root: Path, layout: Layout, paired: Mapping[str, Sample], unpaired: Mapping[str, Fault], orphans: list[Fault]
) -> Scan:
    assert layout.listing is not None
    entries, faults = read_split_list(layout.listing)
    scan = Scan(faults=faults, listing=layout.listing)
    named = {key_of(entry.picture) for entry in entries}
    for entry in entries:
        key = key_of(entry.picture)
        if entry.mask is not None:
            _add_paths(scan, root, layout.listing, entry)
        elif key in paired:
            scan.samples.append(paired[key])
        elif key in unpaired:
            scan.faults.append(unpaired[key])
        else:
            rule = f"line {entry.line} must name a picture in {layout.images.name}, got '{entry.picture}' without files"
            scan.faults.append(Fault(layout.listing, rule, "add the picture and its mask, or remove the line"))
    if layout.dedicated:
        scan.strays = [fault for key, fault in sorted(unpaired.items()) if key not in named] + orphans
    return scan


def _add_paths(scan: Scan, root: Path, listing: Path, entry: Entry) -> None:
    assert entry.mask is not None
    inside = os.path.realpath(root)
    for text in (entry.picture, entry.mask):
        assert not leads_outside(text), "checked when the list was read"
        # Links count by where they lead: the text alone does not show that a folder in the root points elsewhere.
        if os.path.commonpath([inside, os.path.realpath(root / text)]) != inside:
            rule = f"line {entry.line} must stay below the data folder, got '{text}', a link that leads outside"
            scan.faults.append(Fault(listing, rule, "put the file itself into the data folder"))
            return
        if not (root / text).is_file():
            rule = f"line {entry.line} must name files below {root}, got '{text}', which is not there"
            scan.faults.append(Fault(listing, rule, "add the file, or remove the line"))
            return
    name = split_name(Path(entry.picture).name)[0]
    scan.samples.append(Sample(name, root / entry.picture, root / entry.mask))


def by_stem(folder: Path, nested: bool, cut: str = "", only: str = "", arrays: bool = False) -> Stems:
    """Return files by stem, the end ``cut`` taken off. Stems without the end ``cut`` or ``only`` are left out."""
    stems: dict[str, list[Path]] = {}
    for path in _pictures_in(folder, nested, arrays):
        stem = split_name(path.name)[0]
        if stem.endswith(cut) and stem.endswith(only):
            stems.setdefault(key_of(stem[: len(stem) - len(cut)]), []).append(path)
    return stems


def _pictures_in(folder: Path, nested: bool = False, arrays: bool = False) -> list[Path]:
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        if nested:
            within = [folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
            return [path for inner in within for path in _pictures_in(inner, arrays=arrays)]
        # Broken links stay in: they are pictures that somebody forgot to fetch, and reading them says so.
        return [folder / entry.name for entry in entries if is_picture_name(entry.name, arrays) and not entry.is_dir()]
    except OSError as error:
        raise FaultError(
            Fault(folder, f"folder must be readable, got '{error.strerror}'", "check its permissions")
        ) from None


def _pair(
    pictures: Stems, masks: Stems, mask_suffix: str, layout: Layout
) -> tuple[dict[str, Sample], dict[str, Fault], list[Fault]]:
    """Return samples by stem, what keeps other stems from being samples, and masks without a picture."""
    paired: dict[str, Sample] = {}
    unpaired: dict[str, Fault] = {}
    for key, images in pictures.items():
        stem = split_name(images[0].name)[0]
        fitting = masks.get(key_of(key + mask_suffix), [])
        if len(images) > 1 or len(fitting) > 1:
            which, several = ("picture", images) if len(images) > 1 else ("mask", fitting)
            names = " and ".join(path.name for path in several)
            rule = f"stem '{stem}' must belong to one {which}, got {names}"
            unpaired[key] = Fault(several[0], rule, "rename or remove one of them")
        elif not fitting:
            rule = f"picture must have a mask '{stem}{mask_suffix}.png' in {layout.masks}, got none"
            unpaired[key] = Fault(images[0], rule, "add the mask, or move the picture away")
        else:
            paired[key] = Sample(stem, images[0], fitting[0])
    used = {key_of(key + mask_suffix) for key in pictures}
    orphans = []
    for key in sorted(masks.keys() - used):
        rule = f"mask must have a picture of its stem in {layout.images}, got none"
        orphans += [Fault(path, rule, "add the picture, or remove the mask") for path in masks[key]]
    return paired, unpaired, orphans


def _nothing_fits(pictures: Stems, masks: Stems, layout: Layout, mask_suffix: str) -> Fault:
    """Return one fault for a folder where no stem fits, naming the mask suffix that would make them fit."""
    endings = Counter(mask[len(key) :] for mask in masks for key in pictures if mask.startswith(key) and mask != key)
    image, mask = min(paths[0] for paths in pictures.values()), min(paths[0] for paths in masks.values())
    called = f"called as their pictures plus '{mask_suffix}'" if mask_suffix else "of their pictures' stems"
    rule = f"masks must be {called}, got {image.name} and {mask.name}"
    remedy = "rename the masks"
    if endings and endings.most_common(1)[0][1] >= len(pictures) // 2:
        remedy = f"set --data.mask-suffix {endings.most_common(1)[0][0]}"
    return Fault(layout.masks, rule, remedy)


def list_images(inputs: Iterable[Path | str]) -> list[Path]:
    """Return the pictures that predict is to read: files as named, and the pictures in each folder, sorted.

    A file that is named is taken whatever its suffix, also a hidden one. A file met twice counts once.

    Raises: FaultError for an input that does not exist, and for a folder without pictures.
    """
    found: dict[str, Path] = {}
    for item in map(Path, inputs):
        if item.is_dir():
            inside = _pictures_in(item)
            if not inside:
                there = some(sorted(os.listdir(item)), 3) or "nothing"
                raise FaultError(
                    Fault(item, f"folder must hold pictures, got {there}", "name the files, or the right folder")
                )
        elif os.path.lexists(item):
            inside = [item]
        else:
            raise FaultError(Fault(item, "input must be a file or a folder, got no such file", "check the path"))
        for path in inside:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())
