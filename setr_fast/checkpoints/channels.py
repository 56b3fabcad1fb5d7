"""Patch embeddings of colour pictures for pictures of more channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from setr_fast.checkpoints.accounting import Accounting
from setr_fast.models.spec import ModelSpec

_WEIGHT = "encoder.patch_embed.weight"


def extend_channels(
    state: dict[str, Tensor], old: ModelSpec, new: ModelSpec, account: Accounting, rule: Literal["zero", "mean"]
) -> tuple[dict[str, Tensor], ModelSpec]:
    """Return a state and its spec with the patch embedding of ``new``'s channels, of which the old one has three.

    ``zero``: the kernels of the further channels are zero, the function is the old one's whatever those channels hold.
    ``mean``: they are the mean of the kernels of the three colours. The change is noted in the account.
    """
    if old.in_chans != 3 or new.in_chans <= 3 or _WEIGHT not in state:
        return state, old
    weight = state[_WEIGHT]
    further = new.in_chans - 3
    kernel = weight.mean(1, keepdim=True) if rule == "mean" else torch.zeros_like(weight[:, :1])
    extended = torch.cat((weight, kernel.expand(-1, further, -1, -1)), 1)
    account.changed[_WEIGHT] = f"kernels of {further} further channels: {rule}"
    return {**state, _WEIGHT: extended}, old.replace(in_chans=new.in_chans)
