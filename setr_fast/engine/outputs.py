"""What results are called: always inside the output folder, never the same twice, never an input's own name."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

NAME_BYTES = 255
"""Longest file name that common file systems take."""
ENDINGS = (".png", "_overlay.png", "_overlay.jpg", "_frames", "_overlay.mp4")
"""Class map and overlay of a picture; folder of a video's class maps, and its overlay."""


def output_stems(inputs: Sequence[Path], out: Path, below: Sequence[Path] | None = None) -> list[str]:
    """Return one stem per input, so that every ``stem + ending`` is free in ``out``.

    An input's own stem is taken where it can be. Where two inputs share one (``a.jpg`` and ``a.png``, or of two
    folders), the later gets its suffix added (``a_png``), then a number. Names count as equal where some file system
    holds them for equal: letter case and composed or decomposed accents do not tell them apart. ``below``: the folder
    in ``out`` that each result lies in, as part of its stem; no result has the name of such a folder.
    """
    below = below or [Path()] * len(inputs)
    spelled: dict[str, Path] = {}
    places = [_spelled_once(place, spelled) for place in below]
    taken: dict[Path, set[str]] = {}
    for place in places:
        folder = Path(os.path.realpath(out / place))
        taken.setdefault(place, {_key(path.name) for path in inputs if Path(os.path.realpath(path)).parent == folder})
    for place in list(taken):
        for inner, outer in zip((place, *place.parents), place.parents, strict=False):
            taken.setdefault(outer, set()).add(_key(inner.name))
    stems = []
    for path, place in zip(inputs, places, strict=True):
        for stem in _candidates(path):
            names = {_key(stem + ending) for ending in ENDINGS}
            if not names & taken[place]:
                break
        taken[place] |= names
        stems.append((place / stem).as_posix() if place.parts else stem)
    return stems


def _spelled_once(place: Path, spelled: dict[str, Path]) -> Path:
    """Return the folder as it was spelled first: Photos and photos are one on some file systems."""
    if not place.parts:
        return place
    outer = _spelled_once(place.parent, spelled)
    return spelled.setdefault(_key(place.as_posix()), outer / place.name)


def _candidates(path: Path) -> Iterator[str]:
    yield _short(path.stem)
    if path.suffix:
        yield _short(f"{path.stem}_{path.suffix[1:]}")
    number = 2
    while True:
        yield _short(f"{path.stem}_{number}")
        number += 1


def _short(stem: str) -> str:
    """Cut a stem that is too long for the longest ending; a hash of the whole keeps cut names apart."""
    room = NAME_BYTES - max(len(ending) for ending in ENDINGS)
    encoded = os.fsencode(stem)
    if len(encoded) <= room:
        return stem
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return encoded[: room - 9].decode("utf-8", "ignore") + "_" + digest


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
