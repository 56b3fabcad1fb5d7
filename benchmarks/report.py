"""``python -m benchmarks.report``: write README.md's tables, docs/benchmarks.md and its plots from the results.

Nothing but ``benchmarks/results/<card>/*.jsonl`` is read. Rows of a dirty tree, of failed parity, and those during
which other processes were busy are refused. Where a comparison was measured more than once, the newest file counts,
with all of its sides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import plots
from benchmarks.disturbance import ALLOWED
from benchmarks.machine import RESULTS, ROOT
from benchmarks.report_rows import (
    TITLES,
    Row,
    case_of,
    comparisons,
    fastest_other,
    left_out,
    newest,
    read_rows,
    spread,
    table,
    used,
)
from benchmarks.summary import summary

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
REPORT = ROOT / "docs" / "benchmarks.md"
LOSS = 0.97  # below this share of the fastest side's speed a row counts as lost


def main() -> int:
    """Rewrite README.md's part between the two marks, the report and its plots; without a row that counts, nothing."""
    rows = newest(read_rows(RESULTS))
    if not rows:
        where = f"benchmarks.report: {RESULTS} must hold rows that count, got none"
        print(f"{where}; nothing was written: pytest benchmarks/ --benchmark-only --record measures", file=sys.stderr)
        return 3
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{summary(rows)}\n{END}{after}")
    REPORT.write_text(report(rows, left_out(RESULTS, rows)))
    plots.draw_all(rows, REPORT.with_suffix(""))
    return 0


def report(rows: list[Row], missing: Sequence[tuple[Row, str]] = ()) -> str:
    """Return the Markdown report: per machine every side of every comparison, lost ones marked, and the plots.

    ``missing`` (``left_out``) is listed by name: what was measured and is not shown is no secret.
    """
    parts = [
        "# Benchmarks",
        "Written by `python -m benchmarks.report` from `benchmarks/results/`; do not edit. Every ratio is of two sides "
        "that ran interleaved in one process, round by round: median (20th to 80th percentile). A side counts only "
        "if its outputs agreed with float64 on the tensors that were timed. **Lost** marks what a call takes by itself "
        f"where another side was faster. Rows during which other programs took more than {ALLOWED:.0%} of the machine, "
        "or of a tree with uncommitted changes, are left out; the end names those that nothing newer replaces. "
        "GB/s and TFLOP/s are the least work an op must do over its median time, in brackets the share of what a copy "
        "and a matrix product reached in the same run.",
    ]
    for machine in sorted({row["machine"] for row in rows if row["kind"] in TITLES}):
        here = [row for row in rows if row["machine"] == machine]
        parts += [f"## {machine}", _circumstances(here)]
        for kind, title in TITLES.items():
            if sides := comparisons(here, kind):
                parts += [f"### {title}", table(_HEAD, [cells for group in sides for cells in _sides(group)])]
        if loaded := [row for row in here if row["kind"] == "checkpoint"]:
            parts += ["### Loading a ViT-L, beside reading its file", table(_LOADING, [*map(_loading, loaded)])]
        parts += [f"![{name}](benchmarks/{file})" for name, file in plots.files(here)]
        parts.append(_not_run(here))
        parts.append(_missing([(row, why) for row, why in missing if row["machine"] == machine]))
    return "\n\n".join(filter(None, parts)) + "\n"


_LOADING = ("format", "times as long as reading", "peak memory over the file's size")


def _loading(row: Row) -> list[str]:
    return [row["form"], spread(row["load_over_read"]), f"{row['peak_over_size']:.2f}"]


_HEAD = ("what", "side", "times faster than the reference", "than the strongest other", "GB/s", "TFLOP/s", "MiB more")


def _sides(group: list[Row]) -> list[list[str]]:
    """Return the table's lines of one comparison, the used side first."""
    first = used(group)
    lines = []
    for row in sorted(group, key=lambda r: (r is not first, r["side"])):
        other = fastest_other(row)
        lost = row is first and other is not None and other[1]["median"] < LOSS
        reference = row["ratios"].get("reference")
        what = f"`{row['name']}` {case_of(row)}" if row is first else ""
        side = row["side"] + (" (used)" if row.get("chosen") else "")
        strongest = f"{'**Lost** ' if lost else ''}{spread(other[1])} ({other[0]})" if other else ""
        extra = row.get("peak_extra_bytes")
        agreement = row.get("agreement")
        lines.append(
            [
                what,
                side + (f", {agreement:.2%} of pixels agree" if agreement is not None else ""),
                spread(reference) if reference else "",
                strongest,
                _share(row, "gigabytes_per_second", "bandwidth_share"),
                _share(row, "teraflops", "teraflops_share"),
                f"{extra / 2**20:.1f}" if isinstance(extra, int) else "",
            ]
        )
    return lines


def _share(row: Row, name: str, share: str) -> str:
    if row.get(name) is None:
        return ""
    return f"{row[name]:.3g}" + (f" ({row[share]:.0%})" if row.get(share) is not None else "")


def _circumstances(rows: list[Row]) -> str:
    last = max((row for row in rows if row["kind"] in TITLES), key=lambda row: row["file"])
    versions = ", ".join(f"{name} {value}" for name, value in {"torch": last["torch"], **last["versions"]}.items())
    ceilings = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in last.get("ceilings", {}).items())
    return f"{last['threads']} threads, {', '.join(last['isa'])}; {versions}. Reached in the newest run: {ceilings}."


def _not_run(rows: list[Row]) -> str:
    reasons = sorted({(name, why) for row in rows for name, why in row.get("not_run", {}).items()})
    if not reasons:
        return ""
    return "\n".join(["Sides that could not run:", "", *(f"- {name}: {why}" for name, why in reasons)])


def _missing(rows: list[tuple[Row, str]]) -> str:
    if not rows:
        return ""
    lines = [f"- `{row['name']}` {case_of(row)}, {row['side']}: {why}" for row, why in rows]
    return "\n".join(["Measured last, and left out:", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
