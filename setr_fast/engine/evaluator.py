"""Score a model on a data set: one confusion matrix over all its pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.errors import ConfigError
from setr_fast.metrics import Scores
from setr_fast.ops.confusion_matrix import confusion_matrix

if TYPE_CHECKING:
    from setr_fast.data.source import Source

IGNORED = 255
"""Label that is in no cell of the confusion matrix; sources map every ignored id to it."""


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
    check_classes(spec.num_classes, source)
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


def check_classes(num_classes: int, source: Source) -> None:
    """Raise ConfigError if a model of ``num_classes`` cannot be scored on ``source``."""
    if source.classes.num_classes != num_classes:
        raise ConfigError(
            f"evaluate: the data must have the model's {num_classes} classes, got {source.classes.num_classes} "
            f"({', '.join(source.classes.names[:3])}, ...); give the class table of its training by --data.classes"
        )


def _sum_over_ranks(counts: Tensor) -> Tensor:
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else counts.device
    moved = counts.to(device)
    dist.all_reduce(moved)
    return moved.cpu()
