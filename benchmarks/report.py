"""``python -m benchmarks.report``: write the measured tables of README.md from ``benchmarks/results/``.

Rows of a dirty tree are refused. Where a row was measured more than once, the newest is shown.
"""

from __future__ import annotations

import json
import sys
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
    """Return all rows, oldest file first, without those of a dirty tree."""
    rows = []
    for path in sorted(folder.rglob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            row = json.loads(line)
            if row["dirty"]:
                print(f"{path.name}:{number}: refused, measured on a tree with uncommitted changes", file=sys.stderr)
                continue
            rows.append(row)
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown tables: trained models, then ops."""
    trained = {(r["run"], r["machine"]): r for r in rows if r["kind"] == "trained"}
    ops = {(r["op"], r["case"], r["backend"], r["machine"]): r for r in rows if r["kind"] == "op"}
    parts = []
    if trained:
        lines = ["| run | data | steps | minutes | val mIoU | always the commonest class | machine |", "|---|---|---|---|---|---|---|"]
        lines += [
            f"| `{r['run']}` | {r['data']} | {r['steps']} | {r['minutes']:.0f} | {r['mIoU']:.3f} | {r['majority_mIoU']:.3f} | {r['machine']} |"
            for _, r in sorted(trained.items())
        ]
        parts.append("\n".join(lines))
    if ops:
        lines = ["| op | case | backend | times faster than the reference (p20..p80) | machine |", "|---|---|---|---|---|"]
        lines += [
            f"| `{r['op']}` | {r['case']} | {r['backend']} | {r['ratio']['median']:.1f} ({r['ratio']['p20']:.1f}..{r['ratio']['p80']:.1f}) | {r['machine']} |"
            for _, r in sorted(ops.items())
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
