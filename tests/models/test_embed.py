"""Tokens laid out as a picture: order, and a layout in memory that PyTorch's operators know."""

from __future__ import annotations

import pytest
import torch

from setr_fast.nn.embed import tokens_to_map
from setr_fast.shapes import Grid


@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_become_a_map_that_lies_channels_last_whatever_the_batch(batch: int) -> None:
    tokens = torch.arange(batch * 6.0 * 5).view(batch, 6, 5)
    found = tokens_to_map(tokens, Grid.inside((2 * 4, 3 * 4), 4))
    assert torch.equal(found[:, :, 1, 2], tokens[:, 5])
    assert torch.equal(found[:, :, 0, 1], tokens[:, 1])
    # A single picture's stride counts: with another one bilinear resizing takes ten times as long.
    assert found.stride() == torch.empty(batch, 5, 2, 3, memory_format=torch.channels_last).stride()
