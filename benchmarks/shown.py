"""What a run shows in the terminal: a line per comparison, in ratios of sides of one run, and what to mistrust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.report_rows import Row, fastest_other, spread, used

HEAD = ("comparison", "used", "x reference", "x strongest other", "outputs checked")
EXPLAINED = (
    "Times faster: median (20th..80th percentile) over rounds in which both sides ran; below 1 is slower.",
    "used: what a call takes by itself on this machine. Every side: --record-to FILE; times alone: -v.",
)


def lines(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Return the table and its notes; ``groups``: the rows of each comparison, as recorded."""
    cells = [_cells(group) for group in groups if "side" in group[0]]
    widths = [max(map(len, column)) for column in zip(HEAD, *cells, strict=True)]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (HEAD, *cells)]
    table += [_loading(row) for group in groups for row in group if row["kind"] == "checkpoint"]
    return [*(line.rstrip() for line in table), "", *EXPLAINED, *_notes([row for group in groups for row in group])]


def _cells(group: Sequence[Row]) -> tuple[str, ...]:
    row = used(list(group))
    other = fastest_other(row)
    reference = row["ratios"].get("reference")
    wrong = "; ".join(f"{side['side']} WRONG: {side['parity']['why']}" for side in group if not _right(side))
    return (
        f"{row['name']} {row['case']}, {row['direction']}, {row['dtype']}"
        + (" [disturbed]" if _disturbed(row) else ""),
        row["side"],
        spread(reference) if reference else "",
        f"{spread(other[1])} {other[0]}" if other else "",
        wrong or f"{sum(side['parity']['checked'] for side in group)} right",
    )


def _loading(row: Row) -> str:
    return f"loading ViT-L from {row['form']}: {spread(row['load_over_read'])} times as long as reading the file"


def _notes(rows: list[Row]) -> Iterator[str]:
    disturbed = [row["others"] + row["steal"] for row in rows if _disturbed(row)]
    if disturbed:
        yield (
            f"[disturbed]: others took up to {max(disturbed):.0%} of the machine; such figures are not to be believed "
            "and stay out of every report. Repeat on an idle machine."
        )
    if any(row.get("dirty") for row in rows) or not all(row.get("commit") for row in rows):
        yield "The tree has uncommitted changes, or no history: its rows stay out of every report."
    reasons = {name: why for row in rows for name, why in row.get("not_run", {}).items()}
    if reasons:
        yield "Not run here: " + "; ".join(f"{name} ({why})" for name, why in sorted(reasons.items()))


def _disturbed(row: Row) -> bool:
    return bool(row.get("disturbed"))


def _right(row: Row) -> bool:
    return bool(row["parity"]["passed"])
