"""Where the splits of a data folder lie."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from setr_fast.data.faults import Fault, FaultError, some
from setr_fast.data.layouts.known import describe_known
from setr_fast.data.layouts.lists import split_name

_MASKS = ("masks", "labels", "annotations")
_USUAL = ("train", "training", "val", "validation", "test", "trainval")


@dataclass(frozen=True)
class _Pattern:
    images: str
    masks: tuple[str, ...]
    listing: str = "{split}.txt"
    dedicated: bool = True
    nested: bool = False


_PATTERNS = (
    _Pattern("{split}/images", tuple(f"{{split}}/{name}" for name in _MASKS)),
    _Pattern("images/{split}", tuple(f"{name}/{{split}}" for name in _MASKS)),
    _Pattern("img_dir/{split}", ("ann_dir/{split}",)),
    _Pattern("leftImg8bit/{split}", ("gtFine/{split}",), nested=True),
    _Pattern("images", _MASKS, dedicated=False),
    _Pattern("JPEGImages", ("SegmentationClass",), "ImageSets/Segmentation/{split}.txt", dedicated=False),
    _Pattern("JPEGImages", ("SegmentationClassContext",), "ImageSets/SegmentationContext/{split}.txt", dedicated=False),
)


_DESCRIPTION = """\
Folders that --data.root may name, for a split called train (--data.train-split, --data.val-split):

  train/images + train/masks              masks may also be called labels or annotations
  images/train + labels/train             masks and annotations likewise
  img_dir/train + ann_dir/train
  leftImg8bit/train/CITY + gtFine/train/CITY (Cityscapes, with --data.picture-suffix and --data.mask-suffix)
  images + labels, with a list train.txt
  JPEGImages + SegmentationClass, with ImageSets/Segmentation/train.txt
  JPEGImages + SegmentationClassContext, with ImageSets/SegmentationContext/train.txt
  train/metadata.jsonl with lines {"file_name": "a.jpg", "label_file_name": "a.png"}
  train-00000-of-00002.parquet (or in data/, or train/*.arrow), columns image and label or annotation: tables that
  the Hugging Face datasets library writes, read without it and without a network

Pictures and masks have the same stem; --data.mask-suffix _mask pairs a.jpg with a_mask.png,
--data.picture-suffix _image pairs a_image.jpg with a.png.
A list train.txt in the root (a stem per line, or a picture and a mask) narrows any layout to what it names.
Classes come from classes.csv, .json or .toml in the root (columns id,name,r,g,b,ignore), or --data.classes FILE.
Masks are PNG, BMP, GIF or TIFF with class ids: palette or grey, 8 or 16 bits (or colours: --data.mask-colours rgb).
The id 255 is ignored; for masks of 0 and 255 give a class table with the lines 0,background and 255,object.
Pictures are PNG, JPEG, WebP, BMP, GIF or TIFF; they are turned upright by EXIF, masks must fit the upright picture.
--data.channels 4 reads RGBA files or .npy arrays [H, W, 4]; with --data.extra thermal the further channels come from
the folder train/thermal (or thermal/train), as pictures or .npy of the same stem.
Hidden files (one leading dot) are skipped, and so are subfolders except Cityscapes' cities.

Without --data.root, commands use built-in scenes that are drawn on the fly (--data.builtin-train, -val, -size)."""


def describe_layouts() -> str:
    """Return what a data folder may look like, for ``setr-fast data list``."""
    return f"{_DESCRIPTION}\n\n{describe_known()}"


@dataclass(frozen=True)
class Layout:
    """Folders of one split; ``listing`` is its split list, if there is one.

    ``dedicated``: the folders hold this split alone, so that whatever else lies there is worth a word. ``nested``:
    files lie one folder deeper.
    """

    images: Path
    masks: Path
    listing: Path | None
    dedicated: bool
    nested: bool = False


def find_layout(root: Path, split: str, flag: str = "") -> Layout:
    """Return where a split lies. ``flag``: the option that named it, for the message.

    Raises: FaultError saying which folders were looked for and what is there instead.
    """
    root = Path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise FaultError(Fault(root, f"data.root must be a folder, got {found}", "check --data.root"))
    if not split or "/" in split or "\\" in split or split in (".", ".."):
        raise FaultError(Fault(root, f"split must be a plain name, got '{split}'", "name a split such as train"))
    layouts = _candidates(root, split)
    if len(layouts) == 1:
        return layouts[0]
    if layouts:
        both = some([f"{layout.images.relative_to(root)} + {layout.masks.relative_to(root)}" for layout in layouts])
        raise FaultError(Fault(root, f"split '{split}' must lie in one place, got {both}", "remove all but one"))
    raise FaultError(_missing(root, split, flag))


def find_splits(root: Path) -> list[str]:
    """Return the names of the splits that a data folder holds, also where masks are missing; train and val first."""
    root = Path(root)
    names = {name for name in _folders(root) if (root / name / "images").is_dir()}
    names.update(*(_folders(root / name) for name in ("images", "img_dir", "leftImg8bit")))
    if not names:
        names.update(name for name in _USUAL if _candidates(root, name))
        for folder in ("Segmentation", "SegmentationContext"):
            lists = root / "ImageSets" / folder
            if lists.is_dir():
                stems = (split_name(name) for name in os.listdir(lists))
                names.update(stem for stem, suffix in stems if suffix == ".txt" and _candidates(root, stem))
    order = {name: place for place, name in enumerate(_USUAL)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def has_masks(root: Path, split: str) -> bool:
    """Return whether a split has a folder of masks at all; test sets often come without."""
    return bool(_candidates(Path(root), split))


def _candidates(root: Path, split: str) -> list[Layout]:
    layouts = []
    for pattern in _PATTERNS:
        images = root / pattern.images.format(split=split)
        listing = root / pattern.listing.format(split=split)
        listed = listing.is_file()
        if images.is_dir() and (pattern.dedicated or listed):
            folders = [root / name.format(split=split) for name in pattern.masks]
            layouts += [
                Layout(images, folder, listing if listed else None, pattern.dedicated, pattern.nested)
                for folder in folders
                if folder.is_dir()
            ]
    own = [layout for layout in layouts if layout.dedicated]
    return own or layouts


def _missing(root: Path, split: str, flag: str) -> Fault:
    for pattern in _PATTERNS:
        images = root / pattern.images.format(split=split)
        if pattern.dedicated and images.is_dir():
            wanted = " or ".join(name.format(split=split) for name in pattern.masks)
            what = f"split '{split}' must have masks in {wanted}, got {images.relative_to(root)} alone"
            return Fault(root, what, "add the folder of masks")
    splits = [name for name in find_splits(root) if has_masks(root, name)]
    there = some(_folders(root)) or "no folders"
    if (root / f"{split}.txt").is_file():
        there += f", and {split}.txt without folders images + labels"
    looked = f"{split}/images + {split}/masks or images/{split} + labels/{split}"
    remedy = _instead(split, splits, flag) if splits else "arrange the pictures and masks like that"
    return Fault(root, f"split '{split}' must lie in {looked}, got {there}", remedy)


def _instead(split: str, splits: list[str], flag: str) -> str:
    """Return what to do about a split that is not there, given those that are: ``flag`` with the likeliest."""
    if not flag:
        return f"name a split that exists ({some(splits)})"
    akin = [name for name in splits if name.startswith(split) or split.startswith(name)]
    if akin:
        return f"name a split that exists: {flag} {shlex.quote(akin[0])}"
    # What a network was trained on says little about it, so another split comes first.
    likely = next((name for name in splits if not name.startswith("train")), splits[0])
    return f"add it, or name a split that exists ({some(splits)}): {flag} {shlex.quote(likely)}"


def _folders(parent: Path) -> list[str]:
    if not parent.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith("."))
