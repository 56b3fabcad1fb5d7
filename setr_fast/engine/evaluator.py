"""Score a model on a data set: one confusion matrix over all its pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from setr_fast.data.classes import IGNORED, ClassTable
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.engine.probability import class_probability
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
    for done, index in enumerate(indices, start=1):
        image, label = source.read(index)
        size = label.shape[0], label.shape[1]
        tally.add(index, predict(model, image, config, out_size=size), label)
        if tally.probability_of is not None:
            share = class_probability(model, image, tally.probability_of, config, out_size=size)
            tally.add_error(index, share, label)
        if progress is not None:
            progress(done, len(indices))
    if world_size > 1 and dist.is_available() and dist.is_initialized():
        tally.gather()
    return tally.scores()


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
