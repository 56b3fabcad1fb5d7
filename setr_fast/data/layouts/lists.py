"""Split lists: text files that say which samples belong to a split.

One sample per line, either a stem (``0001TP_006690``) or two paths below the data folder, picture and mask, with blanks
between them. Blanks around a line, empty lines, CR LF and a UTF-8 mark at the start mean nothing.
A list may come from anywhere, so no line may lead out of the data folder; such lines are refused before any file
is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from setr_fast.data.faults import Fault, has_control

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Suffixes, in lower case, of files that a folder scan takes for pictures. What a file really is, its content says."""

_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Entry:
    """A line of a split list: a stem, or a picture and a mask as paths below the root."""

    line: int
    picture: str
    mask: str | None


def split_name(name: str) -> tuple[str, str]:
    """Return (stem, suffix) of a file name: cut at its last dot, wherever that is.

    ``....jpg`` has the stem ``...``; os.path would see no suffix there.
    """
    dot = name.rfind(".")
    return (name[:dot], name[dot:]) if dot > 0 else (name, "")


def is_picture_name(name: str, arrays: bool = False) -> bool:
    """Return whether a folder scan takes the name for a picture: known suffix in any case, and not hidden.

    ``arrays``: .npy is such a suffix too. Hidden names start with one dot and something else, as in ``.hidden.jpg``;
    the same in every command.
    """
    hidden = name.startswith(".") and not name.startswith("..")
    suffix = split_name(name)[1].lower()
    return not hidden and (suffix in SUFFIXES or (arrays and suffix == ".npy"))


def key_of(stem: str) -> str:
    """Return what stems are compared by: composed and decomposed accents count as equal."""
    return normalize("NFC", stem)


def read_split_list(path: Path) -> tuple[list[Entry], list[Fault]]:
    """Read a split list; return its good lines, and a fault for each bad one. Touches no file but the list."""

    def fault(what: str, remedy: str) -> Fault:
        return Fault(path, what, remedy)

    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        return [], [fault(f"split list must be readable, got '{error.strerror}'", "check its permissions")]
    entries: list[Entry] = []
    faults: list[Fault] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), 1):
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            faults.append(fault(f"line {number} must be UTF-8, got other bytes", "save the list as UTF-8"))
            continue
        if not text:
            continue
        entry, wrong = _entry(number, text)
        if entry is None:
            faults.append(fault(f"line {number} must {wrong}, got '{text}'", "correct or remove the line"))
            continue
        key = key_of(entry.picture)
        if key in seen:
            what = f"line {number} must name a sample once, got '{text}' again after line {seen[key]}"
            faults.append(fault(what, "remove one of the two lines"))
            continue
        seen[key] = number
        entries.append(entry)
    if not entries and not faults:
        faults.append(fault("split list must name at least one sample, got none", "add stems, or remove the list"))
    return entries, faults


def _entry(number: int, text: str) -> tuple[Entry | None, str]:
    columns = text.split("\t") if "\t" in text else text.split()
    columns = [column.strip() for column in columns]
    paired = len(columns) == 2 and all(split_name(column)[1].lower() in SUFFIXES for column in columns)
    for column in columns if paired else [text]:
        wrong = leads_outside(column)
        if wrong:
            return None, wrong
    if paired:
        return Entry(number, columns[0], columns[1]), ""
    if "/" in text:
        return None, "be a stem, or a picture and a mask with their suffixes"
    stem, suffix = split_name(text)
    return Entry(number, stem if suffix.lower() in SUFFIXES else text, None), ""


def leads_outside(text: str) -> str:
    """Return the rule that a path in a list breaks by leading out of the data folder, or nothing."""
    if has_control(text):
        return "hold no control characters"
    if "://" in text:
        return "be a path, not an address"
    if "\\" in text or _DRIVE.match(text):
        return "use forward slashes below the data folder, not a drive or backslashes"
    if text.startswith("/"):
        return "stay below the data folder, not be absolute"
    if text.startswith("~") and "/" in text:
        return "stay below the data folder, not start at a home folder"
    if ".." in text.split("/"):
        return "stay below the data folder, not go to a parent"
    return ""
