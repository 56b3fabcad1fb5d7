"""Plots of the report: times faster, the roofline, memory, and what each step brings. matplotlib draws them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

Row = dict[str, Any]
USED, OTHER, LINE = "#0b6e4f", "#b8c4bb", "#8a3b12"


def files(rows: list[Row]) -> list[tuple[str, str]]:
    """Return title and file name of each plot that the rows of one machine are enough for."""
    return [(title, name) for title, name, chosen, _ in _plots(rows) if chosen]


def draw_all(rows: list[Row], folder: Path) -> None:
    """Write the plots of all machines as SVG files."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "setr_fast", "svg.fonttype": "none", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    for machine in sorted({row["machine"] for row in rows}):
        for title, name, chosen, draw in _plots([row for row in rows if row["machine"] == machine]):
            if chosen:
                _write(folder / name, f"{title} ({machine})", chosen, draw)


def _plots(rows: list[Row]) -> list[tuple[str, str, list[Row], Any]]:
    machine = re.sub(r"[^a-z0-9]+", "-", rows[0]["machine"].lower()).strip("-") if rows else ""
    measured = [row for row in rows if row["kind"] in ("op", "model", "job", "peer")]
    chosen = [row for row in measured if row.get("chosen") and "reference" in row["ratios"]]
    roof = [row for row in measured if row.get("chosen") and row.get("flops") and row.get("bytes")]
    memory = [row for row in measured if isinstance(row.get("peak_extra_bytes"), int)]
    models = [row for row in rows if row["kind"] == "model" and row.get("agreement") is not None]
    ladder = [row for row in models if "reference" in (row["side"], *row["ratios"])]  # its lowest rung
    return [
        ("Times faster than the reference", f"{machine}-speed.svg", chosen, _speed),
        ("Share of what the machine reaches", f"{machine}-roofline.svg", roof, _roofline),
        ("Memory beyond the arguments", f"{machine}-memory.svg", memory, _memory),
        ("What each step brings", f"{machine}-ladder.svg", ladder, _ladder),
    ]


def _write(path: Path, title: str, rows: list[Row], draw: Any) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5))
    draw(axes, rows)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _label(row: Row) -> str:
    return ", ".join(filter(None, (row["name"], row["case"], row["direction"], row["dtype"])))


def _tall(axes: Any, count: int) -> None:
    axes.figure.set_figheight(1.2 + 0.22 * count)


def _speed(axes: Any, rows: list[Row]) -> None:
    """Draw a bar per comparison with its spread; one is the reference."""
    rows = sorted(rows, key=lambda row: row["ratios"]["reference"]["median"])
    ratios = [row["ratios"]["reference"] for row in rows]
    middle = [ratio["median"] for ratio in ratios]
    low = [max(ratio["median"] - ratio["p20"], 0) for ratio in ratios]
    high = [max(ratio["p80"] - ratio["median"], 0) for ratio in ratios]
    axes.barh(range(len(rows)), middle, xerr=[low, high], color=USED, ecolor=LINE)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.axvline(1, color=LINE, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times faster than the reference in eager mode, same run")
    _tall(axes, len(rows))


def _roofline(axes: Any, rows: list[Row]) -> None:
    """Draw work per byte against speed, under the copy and matrix-product speeds of the newest run."""
    import numpy as np

    ceilings = max(rows, key=lambda row: row["file"])["ceilings"]
    copy = ceilings["copy_gigabytes_per_second"] / 1e3
    intensity = np.logspace(-2, 4, 100)
    for name, top in ceilings.items():
        if name.endswith("_teraflops"):
            axes.plot(intensity, np.minimum(top, copy * intensity), color=LINE, linewidth=1)
            axes.annotate(name.removesuffix("_teraflops"), (intensity[-1], top), ha="right", va="bottom", color=LINE)
    for name in sorted({row["name"] for row in rows}):
        points = [row for row in rows if row["name"] == name]
        work = [row["flops"] / row["bytes"] for row in points]
        axes.scatter(work, [row["teraflops"] for row in points], s=18, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("floating-point operations per byte that must move")
    axes.set_ylabel("TFLOP/s")
    axes.legend(fontsize=7, loc="lower right")


def _memory(axes: Any, rows: list[Row]) -> None:
    """Draw for each comparison the used side's memory and the reference's."""
    groups: dict[str, dict[str, int]] = {}
    for row in rows:
        sides = groups.setdefault(_label(row), {})
        if row.get("chosen"):
            sides["used"] = row["peak_extra_bytes"]
        if row["side"] == "reference":
            sides["reference"] = row["peak_extra_bytes"]
    both = sorted((v["reference"], v["used"], k) for k, v in groups.items() if {"used", "reference"} <= v.keys())
    places = range(len(both))
    axes.barh([p + 0.2 for p in places], [b[0] / 2**20 for b in both], 0.4, color=OTHER, label="reference")
    axes.barh([p - 0.2 for p in places], [b[1] / 2**20 for b in both], 0.4, color=USED, label="used")
    axes.set_yticks(list(places), [b[2] for b in both])
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("MiB")
    axes.legend(loc="lower right")
    _tall(axes, len(both))


def _ladder(axes: Any, rows: list[Row]) -> None:
    """Draw the sides of each model from the reference on, in their order, with the share of pixels that agree."""
    rows = sorted(rows, key=lambda row: (row["name"], row["case"], row["line"]))
    speeds = [row["ratios"].get("reference", {"median": 1.0})["median"] for row in rows]
    colours = [USED if row.get("chosen") else OTHER for row in rows]
    axes.barh(range(len(rows)), speeds, color=colours)
    axes.set_yticks(range(len(rows)), [f"{row['name']} {row['case']}: {row['side']}" for row in rows])
    for place, (row, speed) in enumerate(zip(rows, speeds, strict=True)):
        axes.annotate(f" {speed:.2f}x, {row['agreement']:.2%} agree", (speed, place), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the reference, fp32, eager; share of pixels with the class of float64")
    _tall(axes, len(rows))
