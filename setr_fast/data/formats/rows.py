"""Tables of pictures and masks as the Hugging Face ``datasets`` library stores them: Parquet and Arrow files.

Read with pyarrow alone, never over the network. A cell holds the bytes of a picture file, by themselves or beside its
path (``{"bytes": ..., "path": ...}``); they go through the same rules as files do.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from setr_fast.data.faults import Fault, FaultError, one_line, some
from setr_fast.errors import BackendError

SUFFIXES = (".parquet", ".arrow")
IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "annotation", "mask", "segmentation", "segmentation_mask", "semantic_mask")

_READING = threading.Lock()
"""A Parquet file is read by one thread at a time; what was read belongs to all."""

Columns = tuple[str | None, str | None]
"""Names of the columns with pictures and with masks, where they were given."""


def table_files(root: Path, split: str) -> list[Path]:
    """Return the files of a split: ``train-00000-of-00002.parquet``, ``data/train-*``, or any in a folder ``train``."""
    found = []
    for folder, start in ((root, split), (root / "data", split), (root / split, "")):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            fits = not start or path.name.split(".")[0] == start or path.name.startswith(f"{start}-")
            if fits and path.suffix.lower() in SUFFIXES and not path.name.startswith((".", "cache-")):
                found.append(path)
        if found:
            break
    return found


def table_splits(root: Path) -> list[str]:
    """Return the splits of which the root holds tables."""
    names: set[str] = set()
    for folder in (root, root / "data"):
        if folder.is_dir():
            files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
            names.update(path.name.split(".")[0].split("-")[0] for path in files)
    if root.is_dir():
        names.update(path.name for path in root.iterdir() if path.is_dir() and table_files(root, path.name))
    names.discard("data")
    return sorted(name for name in names if table_files(root, name))


def row_count(path: Path) -> int:
    """Return the number of rows of a table."""
    opened = _opened(path, path.stat().st_mtime_ns)
    return int(opened.metadata.num_rows if path.suffix.lower() == ".parquet" else opened.num_rows)


def has_labels(path: Path, columns: Columns = (None, None)) -> bool:
    """Return whether a table has a column of masks."""
    return _column(path, columns[1], LABEL_COLUMNS) is not None


def cell(path: Path, row: int, columns: Columns, *, mask: bool) -> bytes:
    """Return the bytes of the picture, or of the mask, in a row.

    Raises: FaultError if there is no such column, or the cell holds none.
    """
    known = LABEL_COLUMNS if mask else IMAGE_COLUMNS
    name = _column(path, columns[mask], known)
    if name is None:
        what, option = ("masks", "--data.label-column") if mask else ("pictures", "--data.image-column")
        there = some(_names(path), 12) or "none"
        rule = f"table must have a column of {what}, called {' or '.join(known[:3])}, got {there}"
        raise FaultError(Fault(path, rule, f"name it with {option}"))
    value = _value(path, row, name)
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        kind = "a path without bytes" if isinstance(value, dict) else type(value).__name__
        rule = f"row {row}: column '{name}' must hold the bytes of a picture file, got {kind}"
        raise FaultError(Fault(path, rule, "save the data set with its pictures embedded"))
    return content


def row_names(path: Path, columns: Columns) -> list[str]:
    """Return a name for every row: the stem of its picture's path where all differ, else file and number."""
    numbered = [f"{path.stem}_{row}" for row in range(row_count(path))]
    name = _column(path, columns[0], IMAGE_COLUMNS)
    if name is None:
        return numbered
    try:
        paths = _paths(path, name)
    except KeyError:  # bare bytes have no paths
        return numbered
    stems = [Path(text).stem for text in paths if text]
    return stems if len(stems) == len(numbered) == len(set(stems)) else numbered


def _column(path: Path, given: str | None, known: tuple[str, ...]) -> str | None:
    names = _names(path)
    return next((name for name in ((given,) if given else known) if name in names), None)


def _names(path: Path) -> list[str]:
    opened = _opened(path, path.stat().st_mtime_ns)
    schema = opened.schema_arrow if path.suffix.lower() == ".parquet" else opened.schema
    return list(schema.names)


def _paths(path: Path, name: str) -> list[str | None]:
    opened = _opened(path, path.stat().st_mtime_ns)
    if path.suffix.lower() == ".parquet":
        field = opened.schema_arrow.field(name).type
        if not _arrow().types.is_struct(field) or "path" not in [item.name for item in field]:
            raise KeyError(name)
        column = opened.read(columns=[f"{name}.path"]).column(name)  # the bytes stay on the disk
    else:
        column = opened.column(name)
        if not _arrow().types.is_struct(column.type):
            raise KeyError(name)
    return [chunk["path"] for chunk in _only_paths(column)]


def _only_paths(column: Any) -> list[dict[str, str | None]]:
    compute = importlib.import_module("pyarrow.compute")
    return [{"path": text.as_py()} for text in compute.struct_field(column, "path")]


def _value(path: Path, row: int, name: str) -> Any:
    stamp = path.stat().st_mtime_ns
    opened = _opened(path, stamp)
    if path.suffix.lower() == ".arrow":
        return opened.column(name)[row].as_py()
    first = 0
    for group in range(opened.metadata.num_row_groups):
        count = opened.metadata.row_group(group).num_rows
        if row < first + count:
            with _READING:
                column = _group(path, stamp, group, name).column(name)
            return column[row - first].as_py()
        first += count
    raise IndexError(f"{path}: row {row} of {first}")


@lru_cache(maxsize=2)
def _group(path: Path, stamp: int, group: int, name: str) -> Any:
    """Return one column of a row group; the last ones stay, as rows near each other are often read in turn."""
    try:
        return _opened(path, stamp).read_row_group(group, columns=[name])
    except Exception as error:
        raise _damaged(path, error) from None


@lru_cache(maxsize=64)
def _opened(path: Path, stamp: int) -> Any:
    arrow = _arrow()
    try:
        if path.suffix.lower() == ".parquet":
            return importlib.import_module("pyarrow.parquet").ParquetFile(path, memory_map=True)
        mapped = arrow.memory_map(str(path))  # rows are read from the disk when they are asked for
        try:
            return arrow.ipc.open_stream(mapped).read_all()
        except arrow.ArrowInvalid:
            return arrow.ipc.open_file(arrow.memory_map(str(path))).read_all()
    except Exception as error:  # whatever a damaged file raises
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> FaultError:
    reason = one_line(str(error))[:200] or type(error).__name__
    return FaultError(Fault(path, f"must be a complete table, got '{reason}'", "copy or download the file again"))


def _arrow() -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise BackendError("tables of pictures need pyarrow, which is not installed; pip install 'setr_fast[hf]'")
    return importlib.import_module("pyarrow")
