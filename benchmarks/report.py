"""``python -m benchmarks.report``: write the measured tables of README.md from ``benchmarks/results/``.

Rows of a dirty tree are refused, and so are those during which other processes were busy. Where a row was measured
more than once, the newest is shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> int:
    """Rewrite the part of README.md between the two marks."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{tables(read_rows(RESULTS))}\n{END}{after}")
    return 0


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return all rows that can be believed, oldest file first."""
    rows = []
    for path in sorted(folder.rglob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            row = json.loads(line)
            if why := _refusal(row):
                print(f"{path.name}:{number}: refused, measured {why}", file=sys.stderr)
                continue
            rows.append(row)
    return rows


def _refusal(row: dict[str, Any]) -> str:
    if row["dirty"]:
        return "on a tree with uncommitted changes"
    if not row["commit"]:
        return "on code of no known commit"
    if row.get("disturbed"):
        return f"while others took {row['others'] + row['steal']:.0%} of the machine"
    return ""


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown tables: trained models, then ops."""
    trained = {(r["run"], r["machine"]): r for r in rows if r["kind"] == "trained"}
    ops = {(r["op"], r["case"], r["backend"], r["machine"]): r for r in rows if r["kind"] == "op"}
    parts = []
    if trained:
        head = ("recipe", "data", "steps", "minutes", "mIoU", "mIoU of always the commonest class", "machine")
        parts.append(_table(head, [_trained_cells(r) for _, r in sorted(trained.items())]))
    if ops:
        head = ("op", "case", "backend", "times faster than the reference (p20..p80)", "machine")
        parts.append(_table(head, [_op_cells(r) for _, r in sorted(ops.items())]))
    return "\n\n".join(parts)


def _trained_cells(row: dict[str, Any]) -> list[str]:
    scores = [f"{row['mIoU']:.3f}", f"{row['majority_mIoU']:.3f}"]
    return [f"`{row['run']}`", row["data"], str(row["steps"]), f"{row['minutes']:.0f}", *scores, row["machine"]]


def _op_cells(row: dict[str, Any]) -> list[str]:
    ratio = row["ratio"]
    speed = f"{ratio['median']:.1f} ({ratio['p20']:.1f}..{ratio['p80']:.1f})"
    return [f"`{row['op']}`", row["case"], row["backend"], speed, row["machine"]]


def _table(head: Sequence[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    sys.exit(main())
