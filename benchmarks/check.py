"""``python -m benchmarks.check ROWS.jsonl``: name what got slower against the committed results of the same machine.

A row is slower when its whole spread lies below the spread of the committed one by more than a tenth: ratios of both
sides in one run are compared, never times. Rows of a dirty tree count, disturbed ones do not; a wrong one always
counts. Exit code 1 if any row is slower or wrong, 2 if there is nothing to compare with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.rows import believed, read, refusal

MARGIN = 0.9
FOREIGN = ("compile",)
"""Sides whose speed is not our doing."""


def slower(rows: list[dict[str, Any]], committed: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Return a line for each row that got slower or wrong, and how many rows were compared."""
    known = {_key(row): row for row in committed if _compared(row)}
    lines, compared = [], 0
    for row in rows:
        before = known.get(_key(row)) if _compared(row) else None
        wrong = not row.get("parity", {}).get("passed", True)
        if before is None or (row.get("disturbed") and not wrong):
            continue
        compared += 1
        what = f"{row['name']} {row['case']}, {row['direction']}, {row['dtype'] or 'any dtype'}, {row['side']}"
        now, then = row["ratio"], before["ratio"]
        if why := refusal(row | {"dirty": False, "commit": "this tree", "disturbed": False}):
            lines.append(f"{what}: {why}")
        elif now["p80"] < MARGIN * then["p20"]:
            lines.append(f"{what}: {_text(now)} times {row['baseline']}, was {_text(then)} at {before['commit']}")
    return lines, compared


def _compared(row: dict[str, Any]) -> bool:
    """Return whether a row is one of ours beside a baseline."""
    return "side" in row and row["side"] != row["baseline"] and row["side"] not in FOREIGN and row["kind"] != "peer"


def _text(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['p20']:.2f}..{ratio['p80']:.2f})"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("kind", "name", "case", "direction", "dtype", "side", "baseline", "machine", "threads")
    return tuple(row.get(name) for name in names)


def main(arguments: list[str]) -> int:
    """Compare a file of rows with the committed results."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print("usage: python -m benchmarks.check ROWS.jsonl", file=sys.stderr)
        return 2
    rows = [row for _, row in read(Path(arguments[0])) if _compared(row)]
    lines, compared = slower(rows, believed(RESULTS)[0])
    disturbed = sum(bool(row.get("disturbed")) for row in rows)
    if not compared:
        why = f"no committed row of these cases on this machine, or disturbed by other programs ({disturbed})"
        print(f"nothing to compare: {len(rows)} rows, all of them with {why}", file=sys.stderr)
        return 2
    print("\n".join([*lines, f"{len(lines)} of {compared} rows are slower or wrong"]))
    print(f"{len(rows) - compared} were not compared: not committed for this machine, or disturbed ({disturbed})")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
