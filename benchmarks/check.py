"""``python -m benchmarks.check ROWS.jsonl``: name what got slower against the committed results of the same card.

A row is slower when its whole spread lies below the spread of the committed one by more than a tenth: ratios of both
sides in one run are compared, never times. Exit code 1 if any row is slower, 2 if there is nothing to compare with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.report import read_rows

MARGIN = 0.9


def slower(rows: list[dict[str, Any]], committed: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Return a line for each row that got slower, and how many rows were compared."""
    known = {_key(row): row for row in committed if row["kind"] == "op"}
    lines, compared = [], 0
    for row in rows:
        before = known.get(_key(row)) if row["kind"] == "op" else None
        if before is None or row.get("disturbed"):
            continue
        compared += 1
        now, then = row["ratio"], before["ratio"]
        if now["p80"] < MARGIN * then["p20"]:
            what = f"{row['op']} {row['case']} {row['backend']}"
            lines.append(f"{what}: {_text(now)} times the reference, was {_text(then)} at {before['commit']}")
    return lines, compared


def _text(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['p20']:.2f}..{ratio['p80']:.2f})"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("op"), row.get("case"), row.get("backend"), row["machine"]


def main(arguments: list[str]) -> int:
    """Compare a file of rows with the committed results."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print("usage: python -m benchmarks.check ROWS.jsonl", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines, compared = slower(rows, read_rows(RESULTS))
    if not compared:
        print("nothing to compare: no committed row of these cases on this machine", file=sys.stderr)
        return 2
    print("\n".join([*lines, f"{len(lines)} of {compared} rows are slower"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
