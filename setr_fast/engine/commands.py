"""What `eval` and `predict` do once their arguments are read."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from setr_fast.data.classes import IGNORED, find_class_table
from setr_fast.data.options import DataConfig
from setr_fast.data.shards.source import stated_shard_classes
from setr_fast.data.source import open_source
from setr_fast.engine.checkpoints import load_checkpoint
from setr_fast.engine.evaluator import check_classes, evaluate
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.places import pick_device
from setr_fast.engine.progress import progress_bar
from setr_fast.engine.record import record
from setr_fast.errors import ConfigError, DataError
from setr_fast.fields import nearest
from setr_fast.files import atomic_write, place_for_file
from setr_fast.metrics.options import MetricsConfig
from setr_fast.metrics.table import score_table
from setr_fast.metrics.tally import Tally
from setr_fast.precision.prepare import used

Palette = Sequence[tuple[int, int, int]]


def eval_command(
    checkpoint: Path,
    data: DataConfig,
    inference: InferenceConfig,
    scoring: MetricsConfig | None = None,
    *,
    split: str = "val",
    out: Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Score a checkpoint on a split, print a table of classes, and return (and write, given ``out``) everything that
    belongs to the result: scores in [0, 1], speed, all settings, hashes of weights, data and settings.

    Units: seconds of reading, predicting and counting; loading the model, hashing and resampling are not in them.
    """
    scoring = scoring or MetricsConfig()
    if out is not None:
        place_for_file(out, "out")
    place = pick_device(device)
    model, folder = load_checkpoint(checkpoint)
    model = model.to(place)
    spec: Any = model.spec
    source = open_source(_with_class_count(data, spec.num_classes), split)
    check_classes(spec, source)
    if len(source) == 0:
        raise DataError(f"eval: split {split} must hold a picture with a mask, got none; see `setr-fast data check`")
    names = spec.class_names or source.classes.names
    tally = tally_for(scoring, names)
    started = time.perf_counter()
    with progress_bar(len(source)) as step:
        evaluate(model, source, inference, progress=lambda done, of: step(), tally=tally)
    seconds = time.perf_counter() - started
    scores = tally.scores(scoring.absent)
    if scores.pixels == 0:
        raise DataError(
            f"eval: split {split} must have pixels to score, got ignored ones only; see `setr-fast data check`"
        )
    settings = {"inference": inference, "metrics": scoring, "data": data, "model": spec.to_dict()}
    result = record(
        tally, scoring, names, source, folder=folder, split=split, place=place, seconds=seconds, settings=settings
    )
    result["precision"] = used(model, inference.precision, inference.gelu == "exact")
    print(score_table(scores, names))
    for line in _further(result):
        print(line)
    print(f"{len(source)} pictures in {seconds:.1f} s, {result['images_per_second']:.2f} per second")
    if out is not None:
        atomic_write(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written to {out}")
    return result


def tally_for(scoring: MetricsConfig, names: Sequence[str]) -> Tally:
    """Return an empty tally that counts what the options ask for.

    Raises: ConfigError if the class of the mean absolute error is none of the model's.
    """
    index = None
    if "mae" in scoring.metrics:
        wanted = scoring.mae_class
        if wanted is None and len(names) != 2:
            raise ConfigError(f"mae_class: must be given for {len(names)} classes, got none; name one of them")
        numbers = [str(number) for number in range(len(names))]
        found = [index for index, name in enumerate(names) if name == wanted]
        if not found and wanted in numbers:
            found = [int(wanted)]
        if wanted is None:
            found = [1]
        if len(found) != 1:
            raise ConfigError(
                f"mae_class: must be one class's name or number, got {wanted!r}{nearest(wanted or '', names)}"
            )
        index = found[0]
    ratio = scoring.boundary_ratio if "boundary" in scoring.metrics else None
    return Tally(len(names), ignore_index=IGNORED, boundary_ratio=ratio, probability_of=index)


def _further(result: dict[str, Any]) -> Iterator[str]:
    """What the table of classes does not say: intervals, boundary, error."""
    parts = [("mIoU", result), ("boundary mIoU", result.get("boundary"))]
    for name, part in parts:
        if part is None:
            continue
        span, mean = part["mIoU_interval"], part["mIoU"]
        told = name if mean is None else f"{name} {100 * mean:.2f}"
        if span is not None:
            told += f", {100 * span['level']:.0f}% interval {100 * span['low']:.2f} to {100 * span['high']:.2f}"
            told += f" ({span['resamples']} resamples of {result['images']} pictures)"
        if span is not None or name != "mIoU":
            yield told
    if (error := result.get("mae")) is not None:
        mean = error["MAE"]
        yield f"MAE of {error['class']} " + ("-" if mean is None else f"{mean:.4f}")
    if (volumes := result.get("volumes")) is not None:
        mean = volumes["mDice"]
        yield f"Dice of {len(volumes['volumes'])} volumes " + ("-" if mean is None else f"{100 * mean:.2f}")
    if None in result["IoU"].values() or result["absent_classes"] != "left_out":
        yield f"absent classes: {result['absent_classes']}"


def _with_class_count(data: DataConfig, count: int) -> DataConfig:
    """Where no class table says what ids mean, the model does: masks of one split may lack the last classes."""
    unsaid = (data.root or data.shards) is not None and data.classes is None and data.num_classes is None
    if unsaid and data.shards is not None and stated_shard_classes(data, data.val_split) is not None:
        return data
    if not unsaid or count < 2 or (data.root is not None and find_class_table(data.root) is not None):
        return data
    return dataclasses.replace(data, num_classes=count)
