"""``python -m benchmarks.record_run NAME RUN_DIR METRICS.json [COMMIT]``: keep a finished training run as a row.

METRICS.json is what ``setr-fast eval --out`` wrote for the run's best model. Minutes are those of ``train.log``, from
its first line to its last, with validations and checkpoints. COMMIT (default: HEAD) is the code that trained; it must
be older than the run's first line.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, git, machine


def row_of(name: str, run_dir: Path, metrics: Path) -> dict[str, Any]:
    """Return the row: how long, how well, the whole curve and every class."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    scores = json.loads(metrics.read_text())
    times = [datetime.fromisoformat(line[:19]) for line in (run_dir / "train.log").read_text().splitlines()]
    rates = sorted(r["train/images_per_second"] for r in records if "train/loss" in r)
    data = scores["settings"]["data"].get("root")
    return {
        "kind": "trained",
        "run": name,
        "data": f"{Path(data).name} {scores['split']}" if data else f"built-in {scores['split']}",
        "steps": max(r["step"] for r in records),
        "minutes": (times[-1] - times[0]).total_seconds() / 60,
        "train_images_per_second": rates[len(rates) // 2],
        "curve": [[r["step"], r["val/mIoU"]] for r in records if "val/mIoU" in r],
        **{
            key: scores[key]
            for key in ("mIoU", "aAcc", "mAcc", "IoU", "majority_mIoU", "images", "images_per_second", "sha256")
        },
    }


def main(arguments: list[str]) -> int:
    """Append the row to ``benchmarks/results/<card>/``; refuse a commit that is younger than the run."""
    if len(arguments) not in (3, 4):
        print("usage: python -m benchmarks.record_run NAME RUN_DIR METRICS.json [COMMIT]", file=sys.stderr)
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
    row = row_of(arguments[0], run_dir, Path(arguments[2])) | facts
    with (folder / f"{began:%Y%m%d-%H%M%S}-{facts['commit']}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return 0


def _commit_time(commit: str) -> datetime | None:
    """Return when a commit was made, in local time like the log's, or None if there is no such commit."""
    seconds = git("show", "--no-patch", "--format=%ct", commit)
    return datetime.fromtimestamp(int(seconds)) if seconds else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
