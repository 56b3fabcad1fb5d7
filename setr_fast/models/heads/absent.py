"""The head of a model that is an encoder only."""

from __future__ import annotations

from typing import NoReturn

from torch import nn

from setr_fast.errors import ConfigError
from setr_fast.models.spec import ModelSpec


class AbsentHead(nn.Module):
    """Refuses to classify: the weights held no head."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.where = spec.name

    def forward(self, *_: object) -> NoReturn:
        """Raises: ConfigError, always."""
        raise ConfigError(
            f"{self.where}: the model must have a head to predict with, got an encoder alone; load it with head= and "
            "num_classes= and train it"
        )
