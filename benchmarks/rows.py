"""What a row of ``benchmarks/results/<card>/*.jsonl`` holds, and how rows are written and read.

A row is one side of one comparison. All sides of a comparison ran interleaved in one process and each has its row, the
baseline too. The lines of a file are ``asdict(Row)``, with what ``record`` adds (class Circumstances). Lines of kind
checkpoint and trained are of another make: benchmarks/test_checkpoints.py, benchmarks/record_run.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OTHER_MAKE = ("checkpoint", "trained")
BROKEN = "no row"
"""The kind of a line that cannot be read."""
Quantiles = dict[str, float]
"""Keys median, p20, p80."""


@dataclass(frozen=True)
class Parity:
    """What was proved about the outputs that were timed, each of them."""

    passed: bool
    error: float
    """Largest error against float64 (or against the reference, where the op agrees bit for bit)."""
    allowed: float
    """What it may be: a multiple of the reference's own error in the same dtype, plus a floor of a few ulp."""
    checked: int
    """Timed calls whose outputs were compared."""
    why: str = ""
    """What is wrong, where something is."""


@dataclass(frozen=True)
class Row:
    """One side of one comparison. Units: seconds, bytes, operations, shares of 1."""

    kind: str
    """op: one operation; model: one network; job: files in, result out; loader: pictures to training crops; peer:
    beside another code base, same weights; other design: beside a network of another design."""
    name: str
    """Of the op, model or job."""
    case: str
    """Sizes in words, as the declaration names them."""
    direction: str
    """forward, backward, inference, training step, crops, or job."""
    dtype: str
    """What is computed in: float32, bfloat16, ...; of an op on whole numbers, their type."""
    side: str
    """Backend of ours by its name, ``reference``, ``compile`` (torch.compile of the reference), or a peer."""
    baseline: str
    """The side that ``ratio`` compares with."""
    seconds: Quantiles
    baseline_seconds: Quantiles
    ratio: Quantiles
    """How many times faster than the baseline, taken round by round."""
    ratios: dict[str, Quantiles]
    """The same against every other side of the comparison, by name."""
    rounds: int
    parity: Parity
    chosen: bool = False
    """Whether this is what a call takes by itself here, where nothing is forced."""
    size: list[int] = field(default_factory=list)
    """Batch, height, width, where the row is about pictures."""
    images_per_second: float | None = None
    bytes: int | None = None
    """The least that must pass through memory, and ``flops`` the least that must be computed."""
    flops: int | None = None
    gigabytes_per_second: float | None = None
    teraflops: float | None = None
    bandwidth_share: float | None = None
    """Of what a copy reached in the same run; ``teraflops_share``: of what a matrix product reached in the dtype."""
    teraflops_share: float | None = None
    peak_extra_bytes: int | None = None
    """How far one call lifts the process's memory above its arguments; on a GPU, the allocator's peak."""
    agreement: float | None = None
    """Share of pixels whose class is that of the float64 reference."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Sides that could not run here, with the reason."""

    def label(self) -> str:
        """Return the comparison in words."""
        return f"{self.name} {self.case}, {self.direction}, {self.dtype}"


@dataclass(frozen=True)
class Circumstances:
    """What ``record`` adds to each row."""

    machine: str
    """Card, or processor and number of cores."""
    isa: list[str]
    threads: int
    load: float
    clocks_mhz: list[float]
    """Of every core, or of the card; empty where they cannot be read."""
    torch: str
    python: str
    versions: dict[str, Any]
    """triton and xformers; with a GPU also cuda, cudnn, driver, ptxas, power limit."""
    commit: str
    dirty: bool
    ceilings: dict[str, float]
    """Of this run: copy_gigabytes_per_second, float32_teraflops, ..., and ``others``, which disturbed these."""
    others: float | None
    """Share of all processors that other processes had meanwhile; ``steal``: other guests of the host."""
    steal: float | None
    disturbed: bool
    seed: int
    """Of the random inputs: ``pytest benchmarks/ --seed N`` draws them again."""
    test: str
    """That measured it, as pytest names it."""
    took_seconds: float
    """All of that test until the row was kept, by the clock on the wall."""
    quick: bool
    """Whether sides were timed once only (--quick): no figure then counts."""


GONE = {("add_layer_norm", "backward")}
"""Ops that were measured and have been removed since, with their direction."""


def refusal(row: dict[str, Any]) -> str:
    """Return why a line must stay out of every table, or nothing."""
    if row["kind"] == BROKEN:
        return "it is no row: cut off or edited"
    if row["kind"] not in OTHER_MAKE and "ratios" not in row:
        return "of an older make, without the ratios to all sides of its comparison"
    if row["dirty"]:
        return "measured on a tree with uncommitted changes"
    if not row["commit"]:
        return "measured on code of no known commit"
    if not row.get("parity", {}).get("passed", True):
        return f"parity failed: {row['parity']['why']}"
    if row.get("quick"):
        return "measured with --quick"
    if row.get("disturbed"):
        return f"measured while others took {row['others'] + row['steal']:.0%} of the machine"
    return ""


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and content of each line; BROKEN stands for what is no row, as a killed process leaves it.

    Rows of what is no more are passed over.
    """
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and (row.get("name"), row.get("direction")) in GONE:
            continue
        yield number, row if isinstance(row, dict) and "kind" in row and "dirty" in row else {"kind": BROKEN}


def believed(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return all lines that may be shown, oldest file first, and why each of the others may not."""
    rows, refused = [], []
    for path in sorted(folder.rglob("*.jsonl")):
        for number, row in read(path):
            if why := refusal(row):
                refused.append(f"{path.name}:{number}: refused, {why}")
            else:
                rows.append(row)
    return rows, refused


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line to a file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        whole = not file.tell() or (file.seek(-1, os.SEEK_END), file.read(1))[1] == b"\n"
        file.write((("" if whole else "\n") + json.dumps(row) + "\n").encode())


def fields_of(row: Row | dict[str, Any]) -> dict[str, Any]:
    """Return a row as what is written."""
    return asdict(row) if isinstance(row, Row) else row
