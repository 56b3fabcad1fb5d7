"""The launchers themselves, on a card that is imagined: what they hand to Triton compiles, and few times."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from tests.kernels.imagined import compiling_only, imagined_card

pytest.importorskip("triton", reason="needs triton, which only Linux has")
attention = importlib.import_module("setr_fast.kernels.attention")
descriptors = importlib.import_module("setr_fast.kernels.attention_descriptors")
class_sums = importlib.import_module("setr_fast.kernels.upsample_class_sums")
cross_entropy = importlib.import_module("setr_fast.kernels.upsample_cross_entropy")
layer_norm = importlib.import_module("setr_fast.kernels.add_layer_norm")


@pytest.fixture(autouse=True)
def _card() -> Iterator[None]:
    with imagined_card(90):
        yield


def _times(compiled: set[tuple[str, str]]) -> Counter[str]:
    return Counter(name for name, _ in compiled)


def test_pictures_of_all_sizes_share_one_kernel_of_the_cross_entropy() -> None:
    """Four turns a call, sizes that 16 divides and others, one row, one stretch: none is a kernel of its own."""
    with compiling_only(2) as compiled:
        for h, w, size in ((2, 8, (8, 32)), (16, 48, (64, 192)), (1, 3, (5, 7)), (7, 5, (16, 16))):
            labels = torch.zeros((1, *size), dtype=torch.uint8)
            weights, logits = torch.ones(19), torch.zeros((1, 19, h, w), dtype=torch.bfloat16)
            cross_entropy.upsample_cross_entropy(
                logits, labels, weights, *size, False, 255, "valid", 0.1, with_gradient=True
            )
    assert _times(compiled) == {"_cells": 1}


def test_pictures_of_all_sizes_share_one_kernel_a_direction_of_the_class_sums() -> None:
    with compiling_only(2) as compiled:
        for h, w, size in ((2, 8, (8, 32)), (16, 48, (64, 192)), (1, 3, (5, 7)), (7, 5, (16, 16))):
            labels, logits = (
                torch.zeros((1, *size), dtype=torch.uint8),
                torch.zeros((1, 19, h, w), dtype=torch.bfloat16),
            )
            class_sums.upsample_class_sums(logits, labels, *size, False, 255, 1)
            class_sums.upsample_class_sums_backward(torch.ones(2, 19), logits, labels, *size, False, 255, 1)
    assert _times(compiled) == {"_class_cells": 2}


def test_any_number_of_pictures_is_one_kernel_of_attention_with_descriptors() -> None:
    with compiling_only(2) as compiled:
        for batch, tokens in ((1, 1024), (3, 2304)):
            qkv, launch = torch.zeros((batch, tokens, 3, 2, 64), dtype=torch.bfloat16), attention.Launch(128, 64, 8, 3)
            descriptors.attention(qkv, 0.125, launch)
    assert _times(compiled) == {"_attention_forward_descriptors": 1}


def test_batches_and_lengths_share_a_kernel_of_attention_unless_their_tail_differs() -> None:
    with compiling_only(2) as compiled:
        for batch, tokens in ((1, 256), (3, 1024), (2, 197), (1, 1025)):
            attention.attention(torch.zeros((batch, tokens, 3, 2, 64), dtype=torch.bfloat16), 0.125, "sm_90")
    assert _times(compiled) == {"_attention_forward": 2}


def test_any_number_of_rows_is_one_kernel_of_the_layer_norm() -> None:
    with compiling_only(2) as compiled:
        for rows in (1, 7, 1024, 300_000):
            x = torch.empty((rows, 96))
            given = x.bfloat16(), torch.ones(96), torch.ones(96)
            layer_norm.add_layer_norm(x, *given, 1e-6)
    assert _times(compiled) == {"_add_layer_norm": 1}
