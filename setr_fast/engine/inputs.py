"""What `predict` is to do: the pictures and videos that were named, and those of folders, however deep they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from setr_fast.data.layouts.folder import list_images
from setr_fast.data.layouts.lists import is_picture_name
from setr_fast.engine.video import is_video
from setr_fast.errors import DataError


@dataclass(frozen=True)
class Input:
    """A file, and where below the folder that was named it lies: its results lie there below the output folder."""

    path: Path
    below: Path = Path()


def expand(inputs: Sequence[Path], out: Path) -> list[Input]:
    """Return the files among the inputs as they are, and the pictures and videos in folders with all folders below,
    each file once. Hidden folders, links to folders, and the output folder are passed by.

    Raises: DataError for a folder that cannot be read, or that holds no picture or video.
    """
    files: dict[Path, Input] = {}
    for path in inputs:
        if not path.is_dir():
            files.setdefault(_real(path), Input(path))
            continue
        found = list(_within(path, _real(out)))
        if not found:
            list_images([path])  # says what there is instead
        for one in found:
            files.setdefault(_real(one.path), one)
    if not files:
        raise DataError(f"predict: inputs must hold a picture, got none in {', '.join(map(str, inputs))}")
    return list(files.values())


def _real(path: Path) -> Path:
    """Return where a path leads; Path.resolve raises where links lead in a circle."""
    return Path(os.path.realpath(path))


def _within(folder: Path, out: Path) -> Iterator[Input]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: folder must be readable, got {error.strerror!r}; check its permissions")

    for here, inner, names in os.walk(folder, onerror=refuse):
        # In place: what is taken out is not walked into.
        inner[:] = sorted(name for name in inner if not name.startswith(".") and _real(Path(here, name)) != out)
        below = Path(here).relative_to(folder)
        for name in sorted(names):
            path = Path(here, name)
            if is_picture_name(name) or (is_video(path) and not name.startswith(".")):
                yield Input(path, below)
