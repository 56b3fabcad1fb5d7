"""Score a model on a data set: one confusion matrix over all its pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from setr_fast.data.classes import IGNORED, ClassTable
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.errors import ConfigError
from setr_fast.metrics import Scores
from setr_fast.ops.confusion_matrix import confusion_matrix

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
) -> Scores:
    """Return the scores of ``model`` on every picture of ``source``, each compared at its mask's own size.

    With several ranks, this one takes samples rank, rank + world_size, ...; where ``torch.distributed`` is initialised
    the matrices are summed, so that every rank returns the scores of the whole set, else the caller sums
    ``Scores.confusion``. ``progress(done, of)`` is called after each picture.

    Raises: ConfigError if model and source differ in their number of classes.
    """
    spec: Any = model.spec
    check_classes(spec, source)
    total = torch.zeros(spec.num_classes, spec.num_classes, dtype=torch.int64)
    indices = range(rank, len(source), world_size)
    for done, index in enumerate(indices, start=1):
        image, label = source.read(index)
        predicted = predict(model, image, config, out_size=(label.shape[0], label.shape[1]))
        total += confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(label), spec.num_classes, IGNORED).cpu()
        if progress is not None:
            progress(done, len(indices))
    if world_size > 1 and dist.is_available() and dist.is_initialized():
        total = _sum_over_ranks(total)
    return Scores.of(total)


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


def _sum_over_ranks(counts: Tensor) -> Tensor:
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else counts.device
    moved = counts.to(device)
    dist.all_reduce(moved)
    return moved.cpu()
