"""``python -m benchmarks.record_run NAME RUN_DIR METRICS.json [COMMIT] [--cost-from RUN_DIR]``: keep a training run.

METRICS.json is what ``setr-fast eval --out`` wrote for the run's best model. Minutes are those of ``train.log``, from
its first line to its last, with validations and checkpoints. COMMIT (default: HEAD) is the code that trained; it must
be older than the run's first line. Pictures per second and peak memory are the run's own, or, where other work
disturbed it, those of a short run of equal model, crop and batch; minutes are then left out. ``docs/results.md`` shows
these rows.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, git, machine


def row_of(name: str, run_dir: Path, metrics: Path, cost_from: Path | None = None) -> dict[str, Any]:
    """Return the row: how long, how well, how large, the whole curve and every class."""
    records, cost = _records(run_dir), _records(cost_from or run_dir)
    config, log = _config(run_dir), (run_dir / "train.log").read_text()
    threads, values = re.search(r"of (\d+) threads", log), re.search(r"with ([\d.]+) million weights", log)
    peaks = [r["train/peak_mib"] for r in cost if r.get("train/peak_mib")]
    scores = json.loads(metrics.read_text())
    times = [datetime.fromisoformat(line[:19]) for line in log.splitlines()]
    rates = sorted(r["train/images_per_second"] for r in cost if "train/loss" in r)
    data = scores["settings"]["data"].get("root")
    return {
        "kind": "trained",
        "run": name,
        "data": f"{Path(data).name} {scores['split']}" if data else f"built-in {scores['split']}",
        "model": config["model"]["name"],
        "weights_millions": float(values[1]) if values else None,
        "steps": max(r["step"] for r in records),
        "batch_size": config["train"]["batch_size"],
        "precision": config["train"]["precision"],
        "train_threads": int(threads[1]) if threads else None,
        "peak_mib": round(max(peaks)) if peaks else None,
        "minutes": None if cost_from else (times[-1] - times[0]).total_seconds() / 60,
        "train_images_per_second": rates[len(rates) // 2],
        "curve": [[r["step"], r["val/mIoU"]] for r in records if "val/mIoU" in r],
        **{
            key: scores[key]
            for key in ("mIoU", "aAcc", "mAcc", "IoU", "majority_mIoU", "images", "images_per_second", "sha256")
        },
    }


def _records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _config(run_dir: Path) -> dict[str, Any]:
    return tomllib.loads((run_dir / "config.toml").read_text())


def _same_size(one: Path, other: Path) -> bool:
    """Return whether two runs need the same memory: model, crop and batch are equal."""
    a, b = _config(one), _config(other)
    keys = ("batch_size", "accumulate", "precision", "recompute", "ema")
    alike = all(a["train"].get(key) == b["train"].get(key) for key in keys)
    return alike and a["model"] == b["model"] and a["augment"]["crop"] == b["augment"]["crop"]


def main(arguments: list[str]) -> int:
    """Append the row to ``benchmarks/results/<card>/``; refuse a commit that is younger than the run."""
    cost_from = None
    if len(arguments) > 2 and arguments[-2] == "--cost-from":
        cost_from, arguments = Path(arguments[-1]), arguments[:-2]
        if not _same_size(Path(arguments[1]), cost_from):
            print(f"{cost_from} has another model, crop or batch: its cost says nothing of this run", file=sys.stderr)
            return 2
    if len(arguments) not in (3, 4):
        usage = "usage: python -m benchmarks.record_run NAME RUN_DIR METRICS.json [COMMIT] [--cost-from RUN_DIR]"
        print(usage, file=sys.stderr)
        return 2
    run_dir, commit = Path(arguments[1]), (arguments[3] if len(arguments) == 4 else "HEAD")
    made = _commit_time(commit)
    began = datetime.fromisoformat((run_dir / "train.log").read_text()[:19])
    if made is None or made > began:
        when = "unknown to git" if made is None else f"of {made}"
        print(f"{commit} is {when}, the run began at {began}; name the commit that trained", file=sys.stderr)
        return 2
    facts = machine() | {"commit": git("rev-parse", "--short", commit)}
    folder = RESULTS / str(facts.pop("folder"))
    folder.mkdir(parents=True, exist_ok=True)
    row = row_of(arguments[0], run_dir, Path(arguments[2]), cost_from) | facts
    with (folder / f"{began:%Y%m%d-%H%M%S}-{facts['commit']}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return 0


def _commit_time(commit: str) -> datetime | None:
    """Return when a commit was made, in local time like the log's, or None if there is no such commit."""
    seconds = git("show", "--no-patch", "--format=%ct", commit)
    return datetime.fromtimestamp(int(seconds)) if seconds else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
