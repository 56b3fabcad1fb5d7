"""``python -m benchmarks.record_run NAME RUN_DIR METRICS.json``: keep a finished training run as a row of the results.

METRICS.json is what ``setr-fast eval --out`` wrote for the run's best model. Minutes are those of ``train.log``, from
its first line to its last, with validations and checkpoints.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, machine


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
    """Append the row to ``benchmarks/results/<card>/``."""
    if len(arguments) != 3:
        print("usage: python -m benchmarks.record_run NAME RUN_DIR METRICS.json", file=sys.stderr)
        return 2
    facts = machine()
    folder = RESULTS / str(facts.pop("folder"))
    folder.mkdir(parents=True, exist_ok=True)
    row = row_of(arguments[0], Path(arguments[1]), Path(arguments[2])) | facts
    with (folder / f"{time.strftime('%Y%m%d')}-{facts['commit'] or 'unknown'}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
