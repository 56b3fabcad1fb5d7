"""Write docs/results.md and its curves out of the recipe files, the recorded runs (``python -m benchmarks.record_run``)
and docs/reproduced.toml: ``python docs/results_page.py``.

A test compares the page with what this makes, so that neither can change alone.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package need not be installed

from setr_fast.config import Config, Published, published, read_config, recipe_names, recipe_path  # noqa: E402
from setr_fast.data.layouts.known import KNOWN  # noqa: E402

HEAD = """\
# Results: published, configured, reproduced

Written by `python docs/results_page.py` from the recipes, the runs recorded under `benchmarks/results/` and
`docs/reproduced.toml`; do not edit by hand.

*Published* is what the source reports on its validation (or test) split, mIoU in percent unless another score is
named: one scale, then several scales and mirrored pictures. *Ours* is the recipe, `setr-fast train --recipe NAME
--data.root DIR`; "settings ours" where the source names none. *Reproduced* is what somebody trained with this code and
scored; a blank means that nobody has done it yet, not that it failed. Published weights of these code bases, loaded
here, compute what their own code computes (docs/checkpoints.md); that is no substitute for training them again.
"""

OWN = """\
## {data}: our own rows

Trained from random weights; nothing published to compare with. Each row is one run that `python -m
benchmarks.record_run` recorded: scores of the saved model on the validation split, one scale; pictures/s of training,
the median of all records; memory, the most that the process held while training; minutes, with validation and
checkpoints. Where minutes are blank the run shared its machine, and speed and memory are those of a few steps of
an equal run. The machine may have had other work meanwhile, so times are no benchmark.

{rows}

![mIoU over steps](reproduced/{curve})

IoU of each class:

{classes}
"""
ROWS = (
    "run", "model", "million weights", "steps x batch", "mIoU", "pixel accuracy", "pictures/s", "memory (MiB)",
    "minutes", "threads", "machine", "commit",
)  # fmt: skip
Run = dict[str, Any]


def page() -> str:
    """Return the page as Markdown."""
    runs = tomllib.loads((HERE / "reproduced.toml").read_text()).get("run", [])
    names = recipe_names()
    unknown = sorted({run["recipe"] for run in runs} - set(names))
    assert not unknown, f"docs/reproduced.toml: no such recipes: {unknown}"
    parts = [HEAD]
    by_set: dict[str, list[str]] = {}
    for name in names:
        if published(name).source:
            by_set.setdefault(read_config(recipe_path(name), Config()).data.dataset or "", []).append(name)
    for dataset in sorted(by_set, key=list(KNOWN).index):
        rows = [_row(name, runs) for name in by_set[dataset]]
        head = ("recipe", "model", "crop", "steps x batch", "published", "several scales", "reproduced", "source")
        parts.append(f"## {KNOWN[dataset].title.split(':')[0]}\n\n{_table(head, rows)}\n")
    parts += [_own(group) for group in _recorded().values()]
    return "\n".join(parts)


def draw() -> None:
    """Write the curves of the recorded runs, one picture for each data set."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "setr_fast", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    (HERE / "reproduced").mkdir(exist_ok=True)
    for data, runs in _recorded().items():
        figure, axes = plt.subplots(figsize=(7, 4))
        for run in runs:
            steps, scores = zip(*run["curve"], strict=True)
            axes.plot(steps, [100 * score for score in scores], marker="o", markersize=3, label=run["run"])
        axes.set(title=f"mIoU on {data}", xlabel="steps", ylabel="mIoU, percent", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(HERE / "reproduced" / _curve(data), bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


def _recorded() -> dict[str, list[Run]]:
    """Return the recorded runs by data set, those of one name by the newest alone."""
    newest: dict[str, Run] = {}
    for file in sorted((HERE.parent / "benchmarks" / "results").glob("*/*.jsonl")):
        for line in file.read_text().splitlines():
            if '"trained"' in line and (run := json.loads(line))["kind"] == "trained":
                newest[run["run"]] = run
    found: dict[str, list[Run]] = {}
    for name in sorted(newest):
        found.setdefault(newest[name]["data"], []).append(newest[name])
    return found


def _own(runs: Sequence[Run]) -> str:
    rows = [
        (run["run"], run.get("model") or _model(run["run"]), _number(run.get("weights_millions")), _schedule(run),
         _number(100 * run["mIoU"]), _number(100 * run["aAcc"]), _number(run["train_images_per_second"]),
         str(run.get("peak_mib") or ""), _minutes(run), str(run.get("train_threads") or run["threads"]),
         run["machine"], run["commit"])
        for run in runs
    ]  # fmt: skip
    names = list(runs[0]["IoU"])
    classes = [(name, *(_number(100 * run["IoU"][name]) for run in runs)) for name in names]
    return OWN.format(
        data=runs[0]["data"],
        rows=_table(ROWS, rows),
        curve=_curve(runs[0]["data"]),
        classes=_table(("class", *(run["run"] for run in runs)), classes),
    )


def _schedule(run: Run) -> str:
    """Return steps and batch; of a run that recorded no batch, the recipe's of its name."""
    batch = run.get("batch_size") or read_config(recipe_path(run["run"]), Config()).train.batch_size
    return f"{run['steps']} x {batch}"


def _minutes(run: Run) -> str:
    return "" if run["minutes"] is None else f"{run['minutes']:.0f}"


def _curve(data: str) -> str:
    return data.replace(" ", "-") + ".svg"


def _row(name: str, runs: Sequence[dict[str, object]]) -> tuple[str, ...]:
    config, result = read_config(recipe_path(name), Config()), published(name)
    crop = "x".join(map(str, config.augment.crop))
    done = [f"{_number(run.get('miou'))} ({run['by']}, {run['where']})" for run in runs if run["recipe"] == name]
    schedule = f"{config.train.steps} x {config.train.batch_size}"
    single, several = _single(result), _number(result.miou_multi_scale)
    return name, config.model.name, crop, schedule, single, several, "; ".join(done), result.source


def _single(result: Published) -> str:
    if result.dice is not None:
        return f"Dice {result.dice:.1f}"
    return f"MAE {result.mae:.3f}" if result.mae is not None else _number(result.miou)


def _model(name: str) -> str:
    return read_config(recipe_path(name), Config()).model.name


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float | int) else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    (HERE / "results.md").write_text(page())
    draw()
