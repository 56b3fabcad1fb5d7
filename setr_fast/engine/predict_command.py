"""What `predict` does once its arguments are read: pictures and videos decoded, predicted and written in a pipeline."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from setr_fast.data.faults import one_line
from setr_fast.data.formats.signatures import MAX_PIXELS
from setr_fast.data.layouts.folder import by_stem
from setr_fast.data.layouts.lists import key_of, split_name
from setr_fast.data.palette import default_palette
from setr_fast.data.reading import PictureReader
from setr_fast.engine.checkpoints import load_checkpoint
from setr_fast.engine.inputs import Input, expand
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.outputs import output_stems
from setr_fast.engine.overlay import index_png, overlay, overlay_file
from setr_fast.engine.pipeline import Outcome, pipelined
from setr_fast.engine.places import pick_device
from setr_fast.engine.predictor import channels_of, predict
from setr_fast.engine.progress import progress_bar
from setr_fast.engine.runner import device_of
from setr_fast.engine.sizes import parse_bytes
from setr_fast.engine.turns import Turns, bring_near, turns_of
from setr_fast.engine.video import Frame, Writer, frames, is_video, pixels_of, require_reader, writing
from setr_fast.engine.waiting import frame_bytes, picture_bytes, waiting_room
from setr_fast.errors import ConfigError, DataError
from setr_fast.files import atomic_file, atomic_folder, atomic_write, cannot_write, make_folder

Palette = Sequence[tuple[int, int, int]]
Overlay = Literal["png", "jpg", "none"]
Array = npt.NDArray[Any]


def predict_command(
    checkpoint: Path,
    inputs: Sequence[Path],
    out: Path,
    inference: InferenceConfig,
    *,
    device: str | None = None,
    overlays: Overlay = "jpg",
    extra: Path | None = None,
    extra_range: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write ``<stem>.png`` (classes, at the upright picture's own size) and ``<stem>_overlay.jpg`` for each input.

    Inputs are pictures, videos, and folders of both: a file in a folder below one that is named has its results in a
    folder of that name below ``out``. Of a video: ``<stem>_frames/<number>.png``, ``<stem>_frames/times.csv`` and
    ``<stem>_overlay.mp4``. One that cannot be read is named on stderr, and the others are carried on with. ``extra``:
    folder with each picture's further channels, of which ``extra_range`` becomes 0 and 255 (as
    ``DataConfig.extra_range``).

    Raises: DataError at the end, if any input could not be read.
    """
    files = expand(inputs, out)
    for file in files:
        if is_video(file.path):
            require_reader(file.path)
    place = pick_device(device)
    model = load_checkpoint(checkpoint)[0].to(place)
    if extra is not None and channels_of(model) <= 3:
        raise ConfigError(f"extra: must come with a model of more than three channels, got {channels_of(model)}")
    make_folder(out, "out")
    predict_files(model, files, out, inference, extra, extra_range, overlays=overlays, max_pixels=max_pixels)


def predict_files(
    model: nn.Module,
    files: Sequence[Path | Input],
    out: Path,
    inference: InferenceConfig,
    extra: Path | None = None,
    extra_range: tuple[float, float] | None = None,
    *,
    overlays: Overlay = "jpg",
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Do what ``predict_command`` says, with a model that is loaded and a folder that is there."""
    spec: Any = model.spec
    palette = spec.palette or default_palette(spec.num_classes)
    given = [file if isinstance(file, Input) else Input(file) for file in files]
    below = [file.below for file in given]
    stems = output_stems([file.path for file in given], out, below)
    named = [(file.path, stem) for file, stem in zip(given, stems, strict=True)]
    places = {file.path: file.below for file in given}
    for stem in stems:
        make_folder((out / stem).parent, "out")
    failed: list[Path] = []
    with progress_bar(len(named)) as step:

        def tell(path: Path, error: Exception | None, written: Path | None) -> None:
            if not _tell(path, error, written, out):
                failed.append(path)
            step()

        pictures = [item for item in named if not is_video(item[0])]
        reader = PictureReader(channels_of(model), extra_range, max_pixels=max_pixels)

        turns = turns_of(device_of(model))

        def read(item: tuple[Path, str]) -> Array:
            further = _further_channels(item[0], extra and extra / places[item[0]])
            for file in (item[0],) if further is None else (item[0], further):
                bring_near(file)
            with turns.beside():
                return reader.file(item[0], further)

        with closing(
            _pictures(model, pictures, read, out, inference, palette, overlays, max_pixels, turns)
        ) as outcomes:
            for outcome in outcomes:
                tell(outcome.item[0], outcome.error, outcome.result)
        for path, stem in named:
            if is_video(path):
                error, written = None, None
                try:
                    written = _video(model, path, out / stem, inference, palette, overlays)
                except (DataError, OSError) as caught:
                    error = caught
                tell(path, error, written)
    if failed:
        names = ", ".join(path.name for path in failed[:3]) + (", ..." if len(failed) > 3 else "")
        raise DataError(
            f"every input must be readable, got {len(failed)} of {len(files)} that are not ({one_line(names)}); they "
            "are named above, the others are done"
        )


def _pictures(
    model: nn.Module,
    files: Sequence[tuple[Path, str]],
    read: Callable[[tuple[Path, str]], Array],
    out: Path,
    inference: InferenceConfig,
    palette: Palette,
    overlays: Overlay,
    max_pixels: int,
    turns: Turns,
) -> Generator[Outcome[tuple[Path, str], Path], None, None]:
    room = waiting_room(parse_bytes(inference.memory_budget))
    channels = channels_of(model)

    def compute(pixels: Array) -> tuple[Array, Array]:
        return np.ascontiguousarray(pixels[..., :3]), predict(model, pixels, inference, waiting=room)

    def write(item: tuple[Path, str], made: tuple[Array, Array]) -> Path:
        # Joined as text: Path.with_suffix would take the end of a dotted stem for a suffix.
        target = out / f"{item[1]}.png"
        with turns.beside():
            classes = index_png(made[1], palette)
            mixed = None if overlays == "none" else overlay_file(overlays, *made, palette)
        if mixed is not None:
            atomic_write(out / f"{item[1]}_overlay.{overlays}", mixed, name_too=False)
        atomic_write(target, classes)
        return target

    def bytes_of(item: tuple[Path, str]) -> int:
        return picture_bytes(item[0], channels, overlays, max_pixels)

    return pipelined(files, read, compute, write, bytes_of=bytes_of, room=room, turns=turns)


def _video(
    model: nn.Module,
    path: Path,
    stem: Path,
    inference: InferenceConfig,
    palette: Palette,
    overlays: Overlay,
) -> Path:
    """Write the class maps of a video's frames, when each is shown, and a video of the overlays.

    Raises: DataError for a film that breaks off, when what came before is written.
    """
    shown: list[tuple[int, float]] = []
    broken: DataError | None = None
    folder = stem.with_name(f"{stem.name}_frames")
    room = waiting_room(parse_bytes(inference.memory_budget))
    with ExitStack() as unfinished:
        place = unfinished.enter_context(atomic_folder(folder))
        film = None
        if overlays != "none":
            file = unfinished.enter_context(atomic_file(stem.with_name(f"{stem.name}_overlay.mp4")))
            film = unfinished.enter_context(writing(file, room // 2))
        try:
            for one in _frames(model, path, place, film, inference, palette, overlays):
                shown.append(one)
        except DataError as error:
            if not shown:
                raise
            broken = error
        lines = [f"{number},{seconds:.6f}\n" for number, seconds in shown]
        (place / "times.csv").write_text("frame,seconds\n" + "".join(lines))
    if broken is not None:
        raise DataError(f"{broken}; {len(shown)} frames are in {folder.name}")
    return folder


def _frames(
    model: nn.Module,
    path: Path,
    folder: Path,
    film: Writer | None,
    inference: InferenceConfig,
    palette: Palette,
    overlays: Overlay,
) -> Iterator[tuple[int, float]]:
    """Write every frame, and yield its number and when it is shown, in seconds."""
    coming = frames(path)
    room = waiting_room(parse_bytes(inference.memory_budget))
    of_frame = pixels_of(path) * frame_bytes(overlays)
    turns = turns_of(device_of(model))

    def compute(frame: Frame | None) -> tuple[Frame, Array] | None:
        return None if frame is None else (frame, predict(model, frame.pixels, inference, waiting=room))

    def write(number: int, made: tuple[Frame, Array] | None) -> float | None:
        if made is None:
            return None
        frame, classes = made
        with turns.beside():
            packed = index_png(classes, palette)
            if film is not None:
                film.add(frame, overlay(frame.pixels, classes, palette))
        atomic_write(folder / f"{number:06d}.png", packed)
        return frame.seconds

    def read(_: int) -> Frame | None:
        with turns.beside():
            return next(coming, None)

    # One thread each: a stream is read, and a film written, frame after frame.
    limits: dict[str, Any] = {"readers": 1, "writers": 1, "bytes_of": lambda _: of_frame, "room": room, "turns": turns}
    stages = pipelined(count(), read, compute, write, **limits)
    with closing(stages):
        for outcome in stages:
            if outcome.error is not None:
                raise outcome.error
            if outcome.result is None:
                return
            yield outcome.item, outcome.result


def _tell(item: Path, error: Exception | None, written: Path | None, out: Path) -> bool:
    """Say on one line what became of an input; return whether it was done."""
    if error is None:
        print(one_line(f"{item} -> {written}"), flush=True)
        return True
    if isinstance(error, DataError):
        print(f"predict: {one_line(str(error))}", file=sys.stderr, flush=True)
        return False
    if isinstance(error, OSError):  # the input's own trouble is a DataError: this is the output's
        raise cannot_write("out", out, error) from None
    raise error


def _further_channels(picture: Path, folder: Path | None) -> Path | None:
    """Return the file of a picture's further channels: the one of its stem in the folder.

    Raises: DataError unless there is exactly one.
    """
    if folder is None:
        return None
    there = by_stem(folder, nested=False, arrays=True) if folder.is_dir() else {}
    found = there.get(key_of(split_name(picture.name)[0]), [])
    if len(found) != 1:
        raise DataError(f"{picture}: must have one file of its stem in {folder}, got {len(found)}; see --extra")
    return found[0]
