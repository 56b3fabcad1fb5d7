"""Write docs/results.md out of the recipe files and docs/reproduced.toml: ``python docs/results_page.py``.

A test compares the page with what this makes, so that neither can change alone.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package need not be installed

from setr_fast.config import Config, Published, published, read_config, recipe_names, recipe_path  # noqa: E402
from setr_fast.data.layouts.known import KNOWN  # noqa: E402

HEAD = """\
# Results: published, configured, reproduced

Written by `python docs/results_page.py` from the recipes and `docs/reproduced.toml`; do not edit by hand.

*Published* is what the source reports on its validation (or test) split, mIoU in percent unless another score is
named: one scale, then several scales and mirrored pictures. *Ours* is the recipe, `setr-fast train --recipe NAME
--data.root DIR`; "settings ours" where the source names none. *Reproduced* is what somebody trained with this code and
scored; a blank means that nobody has done it yet, not that it failed. Published weights of these code bases, loaded
here, compute what their own code computes (docs/checkpoints.md); that is no substitute for training them again.
"""

OWN = """\
## Our own rows

Trained from random weights; nothing published to compare with.
"""


def page() -> str:
    """Return the page as Markdown."""
    runs = tomllib.loads((HERE / "reproduced.toml").read_text())["run"]
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
    own = [run for run in runs if not published(run["recipe"]).source]
    rows = [
        (run["recipe"], _model(run["recipe"]), _number(run.get("miou")), _number(run.get("images_per_second")),
         run.get("memory", ""), run.get("curve", ""), run["by"], run["where"])
        for run in own
    ]  # fmt: skip
    head = ("recipe", "model", "mIoU", "pictures/s", "memory", "curve", "by", "where")
    parts.append(f"{OWN}\n{_table(head, rows)}\n")
    return "\n".join(parts)


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
