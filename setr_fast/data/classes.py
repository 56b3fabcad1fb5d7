"""Class tables: what the ids in the masks mean, read from csv, json or toml.

A table has one row per id: ``id, name, r, g, b, ignore``. Colours may be left out (all or none), ``ignore`` too.
Classes are numbered 0, 1, 2, ... in the order of their ids; rows with ``ignore = 1`` name ids that carry no loss
and no score. Every id from the first (0 or 1) to the last class needs a row, so that none is forgotten; only 255
may stand alone at the end, for masks of 0 and 255. 255 is ignored unless a row makes it a class.
Ids are meant after ``data.label_offset`` was added.

json and toml hold ``classes``: rows as above (``color = [r, g, b]``, also spelled ``colour``), or names alone.
"""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from setr_fast.data.faults import Fault, FaultError, has_control, some
from setr_fast.data.palette import RGB, default_palette
from setr_fast.errors import ConfigError

IGNORED = 255
"""Training id of a pixel that carries no loss and no score."""
ILLEGAL = 254
"""Mark of a stored id that means nothing; never reaches a loss."""
MOST_CLASSES = 254

BINARY_REMEDY = "give a class table (classes.csv: id,name) with the lines 0,background and 255,object, or store 0 and 1"
"""What to do about masks of 0 and 255, which would count as one class and pixels to ignore."""

_COLUMNS = {"id", "name", "r", "g", "b", "ignore"}


@dataclass(frozen=True)
class ClassTable:
    """Names, colours and ids of the classes, in class order; and the ids that are ignored."""

    names: tuple[str, ...]
    palette: tuple[RGB, ...]
    ids: tuple[int, ...]
    ignored: frozenset[int] = frozenset()
    ignored_colours: tuple[tuple[int, RGB], ...] = ()
    """(id, colour) of ignored rows, for masks that hold colours."""
    coloured: bool = False
    """Whether the colours come from a file; made-up ones say nothing about masks."""
    path: Path | None = field(default=None, compare=False)
    """The file, for messages."""

    @classmethod
    def numbered(cls, count: int) -> ClassTable:
        """Return a table of ``count`` classes called class_0, class_1, ..., ids as numbered."""
        if not 1 <= count <= MOST_CLASSES:
            raise ConfigError(f"data: number of classes must be 1..{MOST_CLASSES}, got {count}; merge classes")
        return cls(tuple(f"class_{i}" for i in range(count)), default_palette(count), tuple(range(count)))

    @property
    def num_classes(self) -> int:
        """Number of classes that are trained and scored."""
        return len(self.names)

    def lookup(self, offset: int = 0, ignore_index: int | None = None) -> np.ndarray:
        """Return the training id of every stored id 0..65535, as uint8 [65536].

        255 means ignored: the stored id ``ignore_index``; ids that the table ignores; ids that ``offset`` takes
        below zero; and 255 itself, unless it is a class. 254 means that the id is not legal.
        """
        table = np.full(65536, ILLEGAL, np.uint8)
        table[255] = IGNORED
        for value in self.ignored:
            if 0 <= value - offset < 65536:
                table[value - offset] = IGNORED
        for index, value in enumerate(self.ids):
            if 0 <= value - offset < 65536:
                table[value - offset] = index
        if offset < 0:
            table[:-offset] = IGNORED
        if ignore_index is not None and 0 <= ignore_index < 65536:
            table[ignore_index] = IGNORED
        return table

    def colour_ids(self) -> dict[RGB, int]:
        """Return the id that each colour stands for in a colour mask.

        Raises: FaultError if the table came without colours, or gives one colour to two ids.
        """
        where = self.path or Path("class table")
        if not self.coloured:
            raise _fault(where, "colours r, g, b must be given to read colour masks, got none", "add them")
        rows = [*zip(self.palette, self.ids, self.names, strict=True)]
        rows += [(colour, value, f"ignored id {value}") for value, colour in self.ignored_colours]
        seen: dict[RGB, tuple[int, str]] = {}
        for colour, value, name in rows:
            if colour in seen:
                both = f"'{seen[colour][1]}' and '{name}'"
                rule = f"colours must differ to read colour masks, got {colour} for both {both}"
                raise _fault(where, rule, "give each its own colour")
            seen[colour] = value, name
        return {colour: value for colour, (value, _) in seen.items()}


def find_class_table(root: Path) -> Path | None:
    """Return the class table that lies in a data folder, if any.

    Raises: FaultError if there are several.
    """
    found = [root / f"classes.{suffix}" for suffix in ("csv", "json", "toml") if (root / f"classes.{suffix}").is_file()]
    if len(found) > 1:
        names = some([path.name for path in found])
        raise FaultError(Fault(root, f"must have one class table, got {names}", "remove all but one"))
    return found[0] if found else None


def read_class_table(path: Path | str) -> ClassTable:
    """Read a class table from a .csv, .json or .toml file.

    Raises: FaultError naming the file and the row.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".json": _json_rows, ".toml": _toml_rows}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise _fault(path, f"class table must be .csv, .json or .toml, got '{suffix}'", "save it as csv")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _fault(path, f"class table must be readable, got '{error.strerror}'", "check the path") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _fault(path, f"class table must be UTF-8, got other bytes in line {line}", "save it as UTF-8") from None
    rows = readers[suffix](path, text)
    if not rows:
        raise _fault(path, "class table must have at least one class, got none", "add rows id,name,r,g,b")
    return _table(path, rows)


Rows = list[tuple[str, Mapping[str, Any]]]
"""(where in the file, fields) of every row."""


def _csv_rows(path: Path, text: str) -> Rows:
    lines = [(n, cells) for n, cells in enumerate(csv.reader(text.splitlines()), 1) if any(c.strip() for c in cells)]
    if not lines:
        return []
    columns = [cell.strip().lower() for cell in lines[0][1]]
    if not {"id", "name"} <= set(columns) or not set(columns) <= _COLUMNS or len(set(columns)) < len(columns):
        found = ",".join(columns)
        raise _fault(path, f"first line must be 'id,name,r,g,b[,ignore]', got '{found}'", "rename the columns")
    rows: Rows = []
    for number, cells in lines[1:]:
        if len(cells) != len(columns):
            raise _fault(path, f"line {number} must have {len(columns)} columns, got {len(cells)}", "complete it")
        rows.append((f"line {number}", dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    return rows


def _json_rows(path: Path, text: str) -> Rows:
    try:
        return _listed(path, json.loads(text))
    except json.JSONDecodeError as error:
        raise _fault(path, f"must be valid JSON, got '{error}'", "correct it") from None


def _toml_rows(path: Path, text: str) -> Rows:
    try:
        return _listed(path, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise _fault(path, f"must be valid TOML, got '{error}'", "correct it") from None


def _listed(path: Path, content: Any) -> Rows:
    if isinstance(content, Mapping):
        content = content.get("classes")
    if not isinstance(content, list):
        raise _fault(path, "must hold a list 'classes', got none", "write classes as a list of names or rows")
    if content and all(isinstance(item, str) for item in content):
        content = [{"id": index, "name": name} for index, name in enumerate(content)]
    rows: Rows = []
    for number, item in enumerate(content, 1):
        if not isinstance(item, Mapping):
            raise _fault(path, f"entry {number} must be a row with id and name, got {item!r}", "correct it")
        row = dict(item)
        colour = row.pop("color", row.pop("colour", None))
        if colour is not None:
            if not isinstance(colour, Sequence) or isinstance(colour, str) or len(colour) != 3:
                raise _fault(path, f"entry {number}: colour must be [r, g, b], got {colour!r}", "correct it")
            row.update(zip("rgb", colour, strict=True))
        if not {"id", "name"} <= set(row) or not set(row) <= _COLUMNS:
            found = ", ".join(map(str, item))
            raise _fault(path, f"entry {number} must have id, name, color and ignore, got {found}", "correct it")
        rows.append((f"entry {number}", row))
    return rows


def _table(path: Path, rows: Rows) -> ClassTable:
    coloured = any("r" in row or "g" in row or "b" in row for _, row in rows)
    seen_ids: dict[int, str] = {}
    seen_names: dict[str, str] = {}
    classes: list[tuple[int, str, RGB]] = []
    ignored: list[tuple[int, RGB]] = []
    for where, row in rows:
        value = _integer(path, where, "id", row["id"])
        name = str(row["name"]).strip()
        if not name or has_control(name):
            raise _fault(path, f"{where}: name must be one line and not empty, got {name!r}", "name the class")
        if name in seen_names:
            raise _fault(path, f"{where}: names must differ, got '{name}' again after {seen_names[name]}", "rename one")
        if value in seen_ids:
            raise _fault(path, f"{where}: ids must differ, got {value} again after {seen_ids[value]}", "renumber one")
        colour = (0, 0, 0)
        if coloured:
            red, green, blue = (_colour(path, where, channel, row.get(channel)) for channel in "rgb")
            colour = (red, green, blue)
        seen_ids[value], seen_names[name] = where, where
        ignore = str(row.get("ignore", 0)).strip().lower()
        if ignore not in ("0", "1", "", "true", "false"):
            raise _fault(path, f"{where}: ignore must be 0 or 1, got '{ignore}'", "correct it")
        if ignore in ("1", "true"):
            ignored.append((value, colour))
        else:
            classes.append((value, name, colour))
    classes.sort()
    _check_ids(path, [value for value, _, _ in classes], seen_ids)
    names = tuple(name for _, name, _ in classes)
    palette = tuple(colour for _, _, colour in classes) if coloured else default_palette(len(names))
    return ClassTable(
        names,
        palette,
        tuple(value for value, _, _ in classes),
        frozenset(value for value, _ in ignored),
        tuple(ignored) if coloured else (),
        coloured,
        path,
    )


def _check_ids(path: Path, ids: list[int], listed: Mapping[int, str]) -> None:
    if not 2 <= len(ids) <= MOST_CLASSES:
        rule = f"class table must have 2..{MOST_CLASSES} classes that are not ignored, got {len(ids)}"
        raise _fault(path, rule, "add or merge classes")
    if ids[0] < 0 or ids[-1] > 65535:
        bad = ids[0] if ids[0] < 0 else ids[-1]
        raise _fault(path, f"{listed[bad]}: id of a class must be 0..65535, got {bad}", "renumber it or ignore it")
    last = ids[-2] if ids[-1] == IGNORED else ids[-1]
    missing = [str(value) for value in range(1, last) if value not in listed]
    if missing:
        raise _fault(
            path,
            f"ids must have no gap, got no row for id {some(missing)}, though {listed[last]} has id {last}",
            "renumber the classes, or add the missing ids with ignore = 1",
        )


def _integer(path: Path, where: str, column: str, value: Any) -> int:
    try:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise _fault(path, f"{where}: {column} must be a whole number, got {value!r}", "correct it") from None


def _colour(path: Path, where: str, channel: str, value: Any) -> int:
    if value is None:
        raise _fault(path, f"{where}: {channel} must be given once any row has a colour, got none", "add the colour")
    number = _integer(path, where, channel, value)
    if not 0 <= number <= 255:
        raise _fault(path, f"{where}: {channel} must be 0..255, got {number}", "correct the colour")
    return number


def _fault(path: Path, what: str, remedy: str) -> FaultError:
    return FaultError(Fault(path, what, remedy))
