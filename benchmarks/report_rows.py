"""Rows of results as the report reads them: which count, which belong together, and how a cell is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import OTHER_MAKE, read, refusal

Row = dict[str, Any]
TITLES = {
    "op": "Ops",
    "model": "Models",
    "job": "Jobs: files in, result out",
    "loader": "Loader: training crops on one core, beside the same steps in other libraries",
    "peer": "Beside other code bases, with the same weights",
    "other design": "Beside other designs for the same task (no parity: different models; only speed compares)",
}


def read_rows(folder: Path) -> list[Row]:
    """Return all rows that can be believed, oldest file first, each with its file's name and line."""
    rows = []
    for path in sorted(folder.rglob("*.jsonl")):
        for number, row in read(path):
            if why := refusal(row):
                print(f"{path.name}:{number}: refused, {why}", file=sys.stderr)
                continue
            rows.append(row | {"file": path.name, "line": number})
    return rows


def left_out(folder: Path, rows: list[Row]) -> list[tuple[Row, str]]:
    """Return the measurements, with the reason, that are missing beside ``rows``: no later one took their place."""
    shown = {(_comparison(row), row.get("side")): row["file"] for row in rows}
    found: dict[tuple[Any, ...], tuple[Row, str]] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        for _, row in read(path):
            if row["kind"] not in TITLES or not (why := refusal(row)) or "ratios" not in row:
                continue
            key = _comparison(row), row["side"]
            if path.name > shown.get(key, ""):
                found[key] = row, why
    return [found[key] for key in sorted(found)]


def newest(rows: list[Row]) -> list[Row]:
    """Keep of each comparison the sides that were measured last, together."""
    last = {_comparison(row): row["file"] for row in rows}
    kept = [row for row in rows if row["file"] == last[_comparison(row)]]
    return list({(_comparison(row), row.get("side")): row for row in kept}.values())


def _comparison(row: Row) -> tuple[Any, ...]:
    if row["kind"] in OTHER_MAKE:
        return row["kind"], row.get("run") or row["form"], row["machine"]
    return row["kind"], row["name"], row["case"], row["direction"], row["dtype"], row["machine"]


def comparisons(rows: list[Row], kind: str) -> list[list[Row]]:
    """Return the rows of one kind, those of a comparison together, in the order of their names."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] == kind:
            found.setdefault(_comparison(row), []).append(row)
    return [found[key] for key in sorted(found)]


def used(sides: list[Row]) -> Row:
    """Return the side that a call takes by itself, or what comes nearest to it in files that do not say."""
    chosen = [row for row in sides if row.get("chosen")]
    return max(chosen or sides, key=lambda row: row["ratio"]["median"])


def fastest_other(row: Row) -> tuple[str, dict[str, float]] | None:
    """Return the name of the strongest side beside this one, and how many times faster than it this one is."""
    others = {name: ratio for name, ratio in row["ratios"].items() if name != row["side"]}
    if not others:
        return None
    return min(others.items(), key=lambda item: item[1]["median"])


def case_of(row: Row) -> str:
    """Return what was measured, beside its name."""
    return ", ".join(filter(None, (row["case"], row["direction"], row["dtype"])))


def spread(ratio: dict[str, float]) -> str:
    """Return a ratio and its spread in two digits, from 100 on in whole numbers."""
    median, low, high = (f"{x:.0f}" if x >= 100 else f"{x:.2g}" for x in (ratio["median"], ratio["p20"], ratio["p80"]))
    return f"{median} ({low}..{high})"


def table(head: Sequence[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
