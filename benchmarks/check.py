"""``python -m benchmarks.check ROWS.jsonl``: name what got slower against the committed results of the same machine.

A row is slower when the median of its ratio lies more than a tenth below the committed one and further than chance
moves medians of so many rounds with such spreads: ratios of both sides in one run are compared, never times. With
``--again FILE`` what seems slower is measured once more into that file, and only what is slower in both is named. Rows
of a dirty tree count, disturbed ones do not; a wrong one always counts. Exit code 1 if any row is slower or wrong, 2 if
there is nothing to compare with.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, ROOT
from benchmarks.rows import believed, read, refusal

MARGIN = 0.9
SPREAD_OF_MEDIAN = 0.745
"""Standard error of a median, times the square root of the number of rounds, over the distance between the 20th and the
80th percentile: that is 1.68 standard deviations where values are normal, and a median's error 1.25 times a mean's."""
FOREIGN = ("compile",)
"""Sides whose speed is not our doing."""
Row = dict[str, Any]


def slower(rows: Iterable[Row], committed: Iterable[Row]) -> tuple[list[str], int]:
    """Return a line for each row that got slower or wrong, and how many rows were compared."""
    found, compared = _slower_rows(rows, committed)
    return [line for _, line in found], compared


def _slower_rows(rows: Iterable[Row], committed: Iterable[Row]) -> tuple[list[tuple[Row, str]], int]:
    known = {_key(row): row for row in committed if _compared(row)}
    found, compared = [], 0
    for row in rows:
        before = known.get(_key(row)) if _compared(row) else None
        wrong = not row.get("parity", {}).get("passed", True)
        if before is None or (row.get("disturbed") and not wrong):
            continue
        compared += 1
        what = f"{row['name']} {row['case']}, {row['direction']}, {row['dtype'] or 'any dtype'}, {row['side']}"
        if why := refusal(row | {"dirty": False, "commit": "this tree", "disturbed": False, "quick": False}):
            found.append((row, f"{what}: {why}"))
        elif _is_slower(row, before):
            now, then = _text(row["ratio"]), _text(before["ratio"])
            found.append((row, f"{what}: {now} times {row['baseline']}, was {then} at {before['commit']}"))
    return found, compared


def _is_slower(row: Row, before: Row) -> bool:
    """Return whether a ratio lies below another by more than MARGIN and the standard error of their distance."""
    change = math.log(row["ratio"]["median"] / before["ratio"]["median"])
    return change < math.log(MARGIN) - math.hypot(_error(row), _error(before))


def _error(row: Row) -> float:
    """Return the standard error of a median ratio, as a share of it."""
    ratio = row["ratio"]
    return SPREAD_OF_MEDIAN * (ratio["p80"] - ratio["p20"]) / ratio["median"] / math.sqrt(row["rounds"])


def confirmed(found: list[tuple[Row, str]], again: Iterable[Row], committed: Iterable[Row]) -> list[tuple[Row, str]]:
    """Leave out what a second measurement, undisturbed, does not find slower."""
    again, committed = list(again), list(committed)
    still = {_key(row) for row, _ in _slower_rows(again, committed)[0]}
    refuted = {_key(row) for row in again if _compared(row) and not row.get("disturbed")} - still
    return [(row, line) for row, line in found if _key(row) not in refuted]


def _measured_again(found: list[tuple[Row, str]], path: Path) -> list[Row]:
    """Run the tests of these rows once more; return their rows."""
    tests = sorted({row["test"] for row, _ in found if "test" in row})
    if not tests:
        return []
    print(f"measuring again, since it seems slower or wrong: {', '.join(tests)}", flush=True)
    command = [sys.executable, "-m", "pytest", *tests, "--benchmark-only", "-q", "--record-to", str(path)]
    subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
    return [row for _, row in read(path)] if path.is_file() else []


def _compared(row: Row) -> bool:
    """Return whether a row is one of ours beside a baseline."""
    return "ratios" in row and row["side"] != row["baseline"] and row["side"] not in FOREIGN and row["kind"] != "peer"


def _text(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['p20']:.2f}..{ratio['p80']:.2f})"


def _key(row: Row) -> tuple[Any, ...]:
    names = ("kind", "name", "case", "direction", "dtype", "side", "baseline", "machine", "threads")
    return tuple(row.get(name) for name in names)


def main(arguments: list[str]) -> int:
    """Compare a file of rows with the committed results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("rows", type=Path, metavar="ROWS.jsonl")
    parser.add_argument(
        "--again", type=Path, metavar="FILE", help="measure what seems slower once more, into this file"
    )
    options = parser.parse_args(arguments)
    if not options.rows.is_file():
        print(
            f"benchmarks.check: {options.rows} must be a file of rows, there is none; make bench-check", file=sys.stderr
        )
        return 2
    rows, committed = [row for _, row in read(options.rows) if _compared(row)], believed(RESULTS)[0]
    found, compared = _slower_rows(rows, committed)
    if found and options.again:
        found = confirmed(found, _measured_again(found, options.again.absolute()), committed)
    disturbed = sum(bool(row.get("disturbed")) for row in rows)
    if not compared:
        why = f"no committed row of these cases on this machine, or disturbed by other programs ({disturbed})"
        print(f"nothing to compare: {len(rows)} rows, all of them with {why}", file=sys.stderr)
        return 2
    print("\n".join([*(line for _, line in found), f"{len(found)} of {compared} rows are slower or wrong"]))
    print(f"{len(rows) - compared} were not compared: not committed for this machine, or disturbed ({disturbed})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
