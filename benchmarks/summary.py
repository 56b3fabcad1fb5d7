"""README.md's tables of what was measured: trained models, whole networks, jobs, and one case of each op.

A network has one line, and so has an op, whatever was measured of it: docs/benchmarks.md has every side of every case.
"x" in a head means: times faster than.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report_rows import Row, case_of, comparisons, fastest_other, spread, table, used

FORWARD, BACKWARD = ("forward", "inference"), "backward"
WHOLE = ("inference", "training step")
"""Directions of whole networks."""
PEERS = ("mmsegmentation", "official", "PaddleSeg")


def summary(rows: list[Row]) -> str:
    """Return the tables that have a row, machine by machine."""
    parts = []
    for machine in sorted({row["machine"] for row in rows}):
        here = [row for row in rows if row["machine"] == machine]
        if tables := [table for make in (_trained, _networks, _jobs, _ops) if (table := make(here))]:
            parts += [f"**{machine}**", *tables]
    return "\n\n".join(parts)


# ---- trained models -------------------------------------------------------------------------------------------------


def _trained(rows: list[Row]) -> str:
    found = sorted((row for row in rows if row["kind"] == "trained"), key=lambda row: row["run"])
    head = ("recipe", "data", "steps", "mIoU", "mIoU of always the commonest class")
    return table(head, [_trained_cells(row) for row in found]) if found else ""


def _trained_cells(row: Row) -> list[str]:
    scores = [f"{row['mIoU']:.3f}", f"{row['majority_mIoU']:.3f}"]
    return [f"`{row['run']}`", row["data"], str(row["steps"]), *scores]


# ---- whole networks -------------------------------------------------------------------------------------------------


def _networks(rows: list[Row]) -> str:
    """One line per network and size: times faster than the reference, torch.compile of it, and other code bases."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for kind in ("model", "peer"):
        for sides in comparisons(rows, kind):
            row = used(sides)
            if row.get("chosen") and row["direction"] in WHOLE and not _is_part(sides):
                place = lines.setdefault((row["name"], row["dtype"], row["case"].partition(",")[0]), {})
                for column, cell in (_beside if kind == "peer" else _against_reference)(row, sides):
                    place.setdefault(column, cell)
    columns = ["inference", "compile", "memory", "training step", "memory of a step", *PEERS]
    columns = [column for column in columns if any(column in cells for cells in lines.values())]
    if not columns:
        return ""
    titles = {
        "inference": "inference, x reference",
        "compile": "inference, x `torch.compile` of it",
        "memory": "MiB, ours / reference",
        "training step": "training step, x reference",
        "memory of a step": "MiB, ours / reference",
        "mmsegmentation": "inference, x mmsegmentation",
        "official": "inference, x official code",
        "PaddleSeg": "inference, x PaddleSeg",
    }
    order = sorted(lines, key=lambda key: (key[0].rpartition("_vit_")[2], key))
    head = ("network", "pixels", *(titles[column] for column in columns))
    cells = [
        [f"`{name}` {dtype}", pixels.removesuffix("px"), *(lines[name, dtype, pixels].get(c, "") for c in columns)]
        for name, dtype, pixels in order
    ]
    return table(head, cells)


def _against_reference(row: Row, sides: Sequence[Row]) -> list[tuple[str, str]]:
    training = row["direction"] == "training step"
    found = []
    if "reference" in row["ratios"]:
        found.append((row["direction"], spread(row["ratios"]["reference"])))
    if "compile" in row["ratios"] and not training:
        found.append(("compile", spread(row["ratios"]["compile"])))
    other = next((side for side in sides if side["side"] == "reference"), {})
    both = row.get("peak_extra_bytes"), other.get("peak_extra_bytes")
    if None not in both:
        amounts = " / ".join(f"{amount / 2**20:.0f}" for amount in both)
        found.append(("memory of a step" if training else "memory", amounts))
    return found


def _beside(row: Row, sides: Sequence[Row]) -> list[tuple[str, str]]:
    ratio = {name: value for name, value in row["ratios"].items() if name != row["side"]}
    return [(peer, spread(value)) for name, value in ratio.items() for peer in PEERS if name.startswith(peer)]


# ---- jobs and ops ---------------------------------------------------------------------------------------------------


def _jobs(rows: list[Row]) -> str:
    lines = [
        [f"`{row['name']}`", case_of(row), row["side"], _against(row)]
        for kind in ("job", "loader")
        for row in map(used, comparisons(rows, kind))
        if row["side"] != "reference"
    ]
    return table(("job", "case", "used", "x"), lines) if lines else ""


def _against(row: Row) -> str:
    other = fastest_other(row)
    return f"{spread(other[1])} ({other[0]})" if other else ""


def _ops(rows: list[Row]) -> str:
    """One line per op and dtype: of each direction the case in which the reference takes longest."""
    parts = [g for g in comparisons(rows, "model") if _is_part(g) and g[0]["direction"] in (*FORWARD, BACKWARD)]
    groups = heaviest([*comparisons(rows, "op"), *parts])
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in map(used, groups):
        if row["side"] != "reference":  # where no other side runs, as of an op for cards
            direction = BACKWARD if row["direction"] == BACKWARD else FORWARD[0]
            lines.setdefault((row["name"], row["dtype"]), {})[direction] = row
    head = (
        "op",
        "case",
        "forward, x reference",
        "x the strongest other way",
        "backward, x reference",
        "x the strongest other way",
    )
    return table(head, [_op_cells(*key, lines[key]) for key in sorted(lines)]) if lines else ""


def _is_part(sides: Sequence[Row]) -> bool:
    """Tell whether rows of kind model are of a decoder, which stands among the ops."""
    return "_vit_" not in sides[0]["name"]


def _op_cells(name: str, dtype: str, found: dict[str, Row]) -> list[str]:
    cells = []
    for direction in (FORWARD[0], BACKWARD):
        row = found.get(direction)
        reference = row and row["ratios"].get("reference")
        cells.append(spread(reference) if reference else "")
        other = row and fastest_other(row)
        cells.append(f"{spread(other[1])} ({other[0]})" if other and other[0] != "reference" else "")
    cases = list(dict.fromkeys(row["case"] for _, row in sorted(found.items(), reverse=True)))  # forward first
    return [f"`{name}` {dtype}", "; backward ".join(cases), *cells]


def heaviest(groups: list[list[Row]]) -> list[list[Row]]:
    """Keep of each op, direction and dtype the case in which the reference takes longest."""
    kept: dict[tuple[str, ...], list[Row]] = {}
    for sides in groups:
        key = tuple(str(sides[0][field]) for field in ("name", "direction", "dtype"))
        if key not in kept or _weight(sides) > _weight(kept[key]):
            kept[key] = sides
    return list(kept.values())


def _weight(sides: list[Row]) -> float:
    return max(float(row["baseline_seconds"]["median"]) for row in sides)
