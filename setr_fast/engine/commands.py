"""What `eval` and `predict` do once their arguments are read."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from setr_fast.data.classes import IGNORED, find_class_table
from setr_fast.data.faults import one_line
from setr_fast.data.folder import by_stem, list_images
from setr_fast.data.lists import key_of, split_name
from setr_fast.data.options import DataConfig
from setr_fast.data.palette import default_palette
from setr_fast.data.reading import PictureReader
from setr_fast.data.shard_source import stated_shard_classes
from setr_fast.data.source import open_source
from setr_fast.engine.checkpoints import load_checkpoint
from setr_fast.engine.evaluator import check_classes, evaluate
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.outputs import output_stems
from setr_fast.engine.overlay import write_index_png, write_overlay
from setr_fast.engine.predictor import channels_of, predict
from setr_fast.engine.record import record
from setr_fast.engine.video import frames, is_video, require_reader
from setr_fast.errors import BackendError, ConfigError, DataError
from setr_fast.fields import nearest
from setr_fast.files import atomic_folder, atomic_write
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
        _make_folder(out.parent, "out")
        if out.is_dir():
            raise ConfigError(f"out: must be a file, got the folder {out}; name a file in it")
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
    evaluate(model, source, inference, progress=_progress(), tally=tally)
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


def predict_command(
    checkpoint: Path,
    inputs: Sequence[Path],
    out: Path,
    inference: InferenceConfig,
    *,
    device: str | None = None,
    extra: Path | None = None,
    extra_range: tuple[float, float] | None = None,
) -> None:
    """Write ``<stem>.png`` (classes, at the upright picture's own size) and ``<stem>_overlay.png`` for each input.

    Inputs are pictures, folders of them, and videos (``<stem>_frames/<number>.png``). One that cannot be read is
    named on stderr, and the others are carried on with. ``extra``: folder with each picture's further channels,
    of which ``extra_range`` becomes 0 and 255 (as ``DataConfig.extra_range``).

    Raises: DataError at the end, if any input could not be read.
    """
    files = _expand(inputs)
    for path in filter(is_video, files):
        require_reader(path)
    place = pick_device(device)
    model = load_checkpoint(checkpoint)[0].to(place)
    _make_folder(out, "out")
    predict_files(model, files, out, inference, extra, extra_range)


def predict_files(
    model: nn.Module,
    files: Sequence[Path],
    out: Path,
    inference: InferenceConfig,
    extra: Path | None = None,
    extra_range: tuple[float, float] | None = None,
) -> None:
    """Do what ``predict_command`` says, with a model that is loaded and a folder that is there."""
    spec: Any = model.spec
    palette = spec.palette or default_palette(spec.num_classes)
    reader = PictureReader(channels_of(model), extra_range)
    failed = 0
    for path, stem in zip(files, output_stems(files, out), strict=True):
        try:
            if is_video(path):
                written = _predict_video(model, path, out / f"{stem}_frames", inference, palette)
            else:
                pixels = reader.file(path, _further_channels(path, extra))
                written = _predict_picture(model, pixels, out / stem, inference, palette)
        except DataError as error:
            failed += 1
            print(f"predict: {one_line(str(error))}", file=sys.stderr, flush=True)
        except OSError as error:  # the input's own trouble is a DataError: this is the output's
            raise ConfigError(f"out: must be a folder that can be written, got {out}: {error.strerror}") from None
        else:
            print(one_line(f"{path} -> {written}"), flush=True)
    if failed:
        raise DataError(
            f"every input must be readable, got {failed} of {len(files)} that are not; they are named above"
        )


def _further_channels(picture: Path, folder: Path | None) -> Path | None:
    """Return the file of a picture's further channels: the one of its stem in the folder.

    Raises: DataError unless there is exactly one.
    """
    if folder is None:
        return None
    found = by_stem(folder, nested=False, arrays=True).get(key_of(split_name(picture.name)[0]), [])
    if len(found) != 1:
        raise DataError(f"{picture}: must have one file of its stem in {folder}, got {len(found)}; see --extra")
    return found[0]


def pick_device(name: str | None) -> torch.device:
    """Return the device to compute on: the named one, else the first GPU, else the CPU.

    Raises: ConfigError for a name that is none; BackendError for a GPU that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device: must be one of this machine's {torch.cuda.device_count()} GPUs, got {name!r}; "
            "`--device cpu` works anywhere"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: must be cpu, cuda or cuda:N, got {name!r}")
    return device


def _predict_picture(
    model: nn.Module, image: npt.NDArray[np.uint8], stem: Path, inference: InferenceConfig, palette: Palette
) -> Path:
    classes = predict(model, image, inference)
    # Joined as text: Path.with_suffix would take the end of a dotted stem for a suffix.
    target = Path(f"{stem}.png")
    write_overlay(Path(f"{stem}_overlay.png"), np.ascontiguousarray(image[..., :3]), classes, palette)
    write_index_png(target, classes, palette)
    return target


def _predict_video(model: nn.Module, path: Path, folder: Path, inference: InferenceConfig, palette: Palette) -> Path:
    with atomic_folder(folder) as unfinished:
        for number, frame in enumerate(frames(path)):
            _predict_picture(model, frame, unfinished / f"{number:06d}", inference, palette)
    return folder


def _expand(inputs: Sequence[Path]) -> list[Path]:
    """Pictures of the folders among the inputs, the other inputs as they are, each file once."""
    files: dict[Path, Path] = {}
    for path in inputs:
        for file in list_images([path]) if path.is_dir() else [path]:
            files.setdefault(file.resolve(), file)
    if not files:
        raise DataError(f"predict: inputs must hold a picture, got none in {', '.join(map(str, inputs))}")
    return list(files.values())


def _make_folder(path: Path, what: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{what}: must be in a folder that can be written, got {path}: {error.strerror}") from None


def _progress() -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int, of: int) -> None:
        print(f"\r{done}/{of}", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return show


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
