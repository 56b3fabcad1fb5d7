"""Score a model on a data set: one confusion matrix over all its pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from setr_fast.data.classes import IGNORED, ClassTable
from setr_fast.engine.batches import assemble
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.pictures import as_pixels
from setr_fast.engine.predictor import channels_of, joined, settled, strips, views_of
from setr_fast.engine.probability import class_probability
from setr_fast.engine.runner import Runner, evaluating
from setr_fast.engine.turns import Turns, bring_near, turns_of
from setr_fast.engine.views import Assembly
from setr_fast.errors import ConfigError
from setr_fast.metrics import Scores, Tally

if TYPE_CHECKING:
    from setr_fast.data.source import Source


def evaluate(
    model: nn.Module,
    source: Source,
    config: InferenceConfig | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    tally: Tally | None = None,
) -> Scores:
    """Return the scores of ``model`` on every picture of ``source``, each compared at its mask's own size.

    With several ranks, this one takes samples rank, rank + world_size, ...; where ``torch.distributed`` is initialised
    the shares are merged, so that every rank returns the scores of the whole set, else the caller merges the tallies.
    ``tally`` says what is counted besides, and holds it afterwards; pictures it holds already are not done again.
    ``progress(done, of)`` is called after each picture.

    Raises: ConfigError if model, source and tally differ in their number of classes.
    """
    spec: Any = model.spec
    check_classes(spec, source)
    tally = Tally(spec.num_classes, ignore_index=IGNORED) if tally is None else tally
    if tally.num_classes != spec.num_classes:
        raise ConfigError(
            f"evaluate: tally must have the model's {spec.num_classes} classes, got {tally.num_classes}; make a new one"
        )
    indices = [index for index in range(rank, len(source), world_size) if index not in tally]
    answers = _answers(model, source, indices, settled(config, model))
    with torch.inference_mode(), evaluating(model), closing(answers):
        for done, found in enumerate(answers, start=1):
            tally.add(found.index, found.classes, found.label, found.counts)
            if tally.probability_of is not None:
                size = found.label.shape[0], found.label.shape[1]
                share = class_probability(model, found.image, tally.probability_of, config, out_size=size)
                tally.add_error(found.index, share, found.label)
            if progress is not None:
                progress(done, len(indices))
    if world_size > 1 and dist.is_available() and dist.is_initialized():
        tally.gather()
    return tally.scores()


@dataclass
class _Answer:
    """A picture on its way through the model."""

    index: int
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    parts: list[Assembly]

    @property
    def classes(self) -> npt.NDArray[Any]:
        return joined(self.parts)

    @property
    def counts(self) -> Tensor:
        return torch.stack([part.counts for part in self.parts if part.counts is not None]).sum(0)


def _answers(
    model: nn.Module, source: Source, indices: Sequence[int], config: InferenceConfig
) -> Generator[_Answer, None, None]:
    """Yield the answer to each sample, in order; windows of several pictures pass through the model together."""
    runner = Runner(model, config)
    started: deque[tuple[_Answer, int]] = deque()

    def coming() -> Iterator[Assembly]:
        for index, (image, label) in samples:
            views = views_of(model, as_pixels(image, channels_of(model)), config)
            labels = torch.from_numpy(np.require(label, requirements=["C", "W"]))
            parts = list(strips(runner, views, (label.shape[0], label.shape[1]), labels))
            started.append((_Answer(index, image, label, []), len(parts)))
            yield from parts

    with closing(_read_ahead(source, indices, turns_of(runner.device))) as samples:
        for part in assemble(coming(), runner.run, runner.batch_of, runner.held, runner.bytes_of):
            answer, count = started[0]
            answer.parts.append(part)
            if len(answer.parts) == count:
                yield started.popleft()[0]


def _read_ahead(
    source: Source, indices: Sequence[int], turns: Turns
) -> Generator[tuple[int, tuple[Any, Any]], None, None]:
    """Yield samples with their index; the next one is read while one is worked on, and decoded then or in turns."""

    def read(index: int) -> tuple[Any, Any]:
        files = _files(source, index)
        if not files:  # what reading waits for is not known: it may be a net
            return source.read(index)
        for file in files:
            bring_near(file)
        with turns.beside():
            return source.read(index)

    with ThreadPoolExecutor(1) as reading:
        following = reading.submit(read, indices[0]) if indices else None
        try:
            for place, index in enumerate(indices):
                assert following is not None
                turns.give()
                sample = following.result()
                following = reading.submit(read, indices[place + 1]) if place + 1 < len(indices) else None
                turns.take()
                yield index, sample
        finally:  # here, not when the error that ended the work is forgotten
            turns.give()


def _files(source: Source, index: int) -> list[Path]:
    """Return the files that reading a sample of a folder opens; none of another source."""
    from setr_fast.data.source import FolderSource

    if not isinstance(source, FolderSource):
        return []
    sample = source.samples[index]
    return [file for file in (sample.image, sample.extra, sample.mask) if file is not None]


def check_classes(spec: Any, source: Source) -> None:
    """Raise ConfigError if a model of ``spec`` cannot be scored on ``source``: other classes, or another order.

    Names are compared where both sides have some of their own, not numbers made up for want of a class table.
    """
    theirs, count = source.classes.names, spec.num_classes
    if len(theirs) != count:
        raise ConfigError(
            f"evaluate: the data must have the model's {count} classes, got {len(theirs)} "
            f"({', '.join(theirs[:3])}, ...); give the class table the model was trained with by --data.classes"
        )
    own = getattr(spec, "class_names", None)
    made_up = ClassTable.numbered(count).names
    if own is None or made_up in (tuple(own), tuple(theirs)):
        return
    for index, (name, other) in enumerate(zip(own, theirs, strict=True)):
        if name != other:
            raise ConfigError(
                f"evaluate: class {index} must be {name!r} as in the model, got {other!r} from the data; "
                "give the class table the model was trained with by --data.classes"
            )
