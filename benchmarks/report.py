"""``python -m benchmarks.report``: write README.md's table, docs/benchmarks.md and its plots from the results.

Nothing but ``benchmarks/results/<card>/*.jsonl`` is read. Rows of a dirty tree, of failed parity, and those during
which other processes were busy are refused. Where a comparison was measured more than once, the newest file counts,
with all of its sides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.disturbance import ALLOWED
from benchmarks.machine import RESULTS, ROOT
from benchmarks.rows import OTHER_MAKE, read, refusal

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
REPORT = ROOT / "docs" / "benchmarks.md"
LOSS = 0.97  # below this share of the fastest side's speed a row counts as lost
TITLES = {
    "op": "Ops",
    "model": "Models",
    "job": "Jobs: files in, result out",
    "loader": "Loader: training crops on one core, beside the same steps in other libraries",
    "peer": "Beside other code bases, with the same weights",
    "other design": "Beside other designs for the same task (no parity: different models; only speed compares)",
}
Row = dict[str, Any]


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


# ---- README ---------------------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> str:
    """Return README's tables: trained models, then the used side of whole networks and jobs and of one case per op."""
    parts = []
    if trained := [row for row in rows if row["kind"] == "trained"]:
        parts.append(_trained(trained))
    groups = [
        sides
        for kind in ("model", "job", "loader", "peer", "op")
        for sides in (heaviest(comparisons(rows, kind)) if kind == "op" else comparisons(rows, kind))
    ]
    lines = [_summary_cells(row) for row in map(used, groups) if row["side"] != "reference"]  # only cards have others
    if lines:
        head = ("what", "case", "used", "times faster than the reference", "than the strongest other way", "machine")
        parts.append(_table(head, lines))
    return "\n\n".join(parts)


def heaviest(groups: list[list[Row]]) -> list[list[Row]]:
    """Keep of each op, direction and machine the case in which the reference takes longest."""
    kept: dict[tuple[str, str, str], list[Row]] = {}
    for sides in groups:
        key = sides[0]["name"], sides[0]["direction"], sides[0]["machine"]
        if key not in kept or _weight(sides) > _weight(kept[key]):
            kept[key] = sides
    return list(kept.values())


def _weight(sides: list[Row]) -> float:
    return max(float(row["baseline_seconds"]["median"]) for row in sides)


def _summary_cells(row: Row) -> list[str]:
    other = fastest_other(row)
    strongest = f"{spread(other[1])} ({other[0]})" if other else ""
    reference = row["ratios"].get("reference")
    return [
        f"`{row['name']}`",
        _case(row),
        row["side"],
        spread(reference) if reference else "",
        strongest,
        row["machine"],
    ]


def _trained(rows: list[Row]) -> str:
    head = ("recipe", "data", "steps", "mIoU", "mIoU of always the commonest class", "machine")
    return _table(head, [_trained_cells(row) for row in sorted(rows, key=lambda r: (r["run"], r["machine"]))])


def _trained_cells(row: Row) -> list[str]:
    scores = [f"{row['mIoU']:.3f}", f"{row['majority_mIoU']:.3f}"]
    return [f"`{row['run']}`", row["data"], str(row["steps"]), *scores, row["machine"]]


# ---- report ---------------------------------------------------------------------------------------------------------


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
                parts += [f"### {title}", _table(_HEAD, [cells for group in sides for cells in _sides(group)])]
        if loaded := [row for row in here if row["kind"] == "checkpoint"]:
            parts += ["### Loading a ViT-L, beside reading its file", _table(_LOADING, [*map(_loading, loaded)])]
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
        what = f"`{row['name']}` {_case(row)}" if row is first else ""
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
    lines = [f"- `{row['name']}` {_case(row)}, {row['side']}: {why}" for row, why in rows]
    return "\n".join(["Measured last, and left out:", "", *lines])


def _case(row: Row) -> str:
    return ", ".join(filter(None, (row["case"], row["direction"], row["dtype"])))


def spread(ratio: dict[str, float]) -> str:
    """Return a ratio and its spread in two digits, from 100 on in whole numbers."""
    median, low, high = (f"{x:.0f}" if x >= 100 else f"{x:.2g}" for x in (ratio["median"], ratio["p20"], ratio["p80"]))
    return f"{median} ({low}..{high})"


def _table(head: Sequence[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    sys.exit(main())
