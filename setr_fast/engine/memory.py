"""What a picture's way to its classes holds in memory, by arithmetic: so that a budget is kept before it is too late.

Counted are the numbers that live at the same time, at the widest point. What is not: the model, the libraries, and the
picture itself with what a caller keeps of it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from setr_fast.engine.views import Assembly, Geometry
from setr_fast.precision.rounding import MOST_WINDOWS

FIXED = 4 * 2**20
"""Bytes beside everything counted: rows under way, small tables."""
SLACK, _MOST_SLACK = 1.5, 28 * 2**20
"""Libraries pack parts of what they multiply and keep the room for it: this share of a batch, but at most so many
bytes (10 to 15 MiB were seen)."""
_UNMAPPED = 64 * 2**20
"""What blocks leave free does not serve a head's larger maps, as long as the C library keeps it for smaller pieces:
those below 32 MiB, of which no more than this is free at a time."""
Read = Literal["bytes", "resized", "numbers"]
"""How windows come: as the picture has them, resized as bytes, or normalised."""
_WORKING = 160
"""Bytes per window and column while an assembly's tables are made."""


def batch_bytes(
    spec: Any, geometry: Geometry, window: tuple[int, int], count: int, *, precision: str, read: Read = "bytes"
) -> int:
    """Return what ``count`` windows hold on their way through the model together, their logits included, in bytes."""
    together = _together(spec, geometry, window, count, precision, read)
    if precision == "int8" and hasattr(spec, "taps"):
        # The first windows calibrate, in float32, beside a negative and a stranger; all answers of a block are kept.
        seen = min(count, MOST_WINDOWS) + 2
        together = max(together, _together(spec, geometry, window, seen, "calibration", read))
    return together + min(int(SLACK * together), _MOST_SLACK)


def _together(spec: Any, geometry: Geometry, window: tuple[int, int], count: int, precision: str, read: Read) -> int:
    """Return the bytes of tensors that are alive at the widest point, and of holes between them that serve nobody."""
    pixels = count * window[0] * window[1]
    channels = getattr(spec, "in_chans", 3)
    # Read, and copied into a batch; resizing bytes makes numbers on its way.
    seen = pixels * {"bytes": 2 * channels, "resized": 7 * channels, "numbers": 12 * channels}[read]
    if not hasattr(spec, "taps"):  # a model of another class: its logits are as large as the window
        return int(seen + 4 * pixels * (3 * 64 + 2 * spec.num_classes))
    tokens = math.ceil(window[0] / spec.patch_size) * math.ceil(window[1] / spec.patch_size)
    tap = tokens * spec.width
    block = _block((tokens + spec.leading_tokens) * spec.width, spec.mlp_ratio, precision)
    # The patches as rows, and the tokens they become, before the first block.
    embed = tokens * (channels * spec.patch_size**2 + 2 * spec.width)
    taps = len(spec.taps) * tap
    encoder = 4 * count * max(embed, taps - tap + block)
    head = 4 * count * (taps + _head(spec, tokens, geometry.low[0] * geometry.low[1], precision))
    if precision == "bf16" and spec.head != "mask" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        head = int(0.6 * head)
    return int(seen + max(encoder, head) + min(encoder, head, _UNMAPPED))


def assembly_bytes(assembly: Assembly, logit: int) -> int:
    """Return what a picture (or a strip of it) holds: logits of ``logit`` bytes that wait, the whole picture's classes,
    twice while strips are joined, and tables of its columns."""
    classes = assembly.size[0] * assembly.size[1]
    width = 1 if assembly.num_classes <= 256 else 2
    if assembly.is_plain:
        return 2 * width * classes  # also what is found, before it is copied
    return assembly.values() * logit + 2 * width * classes + assembly.table_values() * _WORKING


def _block(values: int, ratio: float, precision: str) -> int:
    """Numbers that a transformer block holds where its MLP is widest: the stream before and after attention, its norm,
    the hidden layer and what leaves it; or in attention: queries, keys, values and its answer."""
    if precision == "calibration":  # every answer, and errors beside them
        return int(values * (12 + 3 * ratio))
    if precision == "bf16":
        return int(values * max(4.5 + ratio / 2, 6))
    return int(values * max(4 + ratio, 7))


def _head(spec: Any, tokens: int, low: int, precision: str) -> int:
    """Numbers that a head holds beside the taps."""
    classes = spec.num_classes
    logits = low * classes
    if spec.head == "mask":
        rows = (tokens + classes) * spec.decoder_width
        return int(max(_block(rows, spec.decoder_mlp_ratio, precision) + 3 * rows, 4 * rows + 3 * logits))
    if spec.head == "mla":
        levels = len(spec.taps)
        neck = tokens * (2 * levels * spec.head_channels + spec.width)
        branches = tokens * (levels * (spec.head_channels + 2 * spec.branch_channels) + spec.branch_channels)
        return int(max(neck, branches + logits + tokens * classes))
    if spec.head in ("naive", "pup"):
        return _upsampling(spec, tokens, logits)
    return int(tokens * spec.width + 2 * logits)


def _upsampling(spec: Any, tokens: int, logits: int) -> int:
    """Stages of a head one after the other; the last enlargement and the classifier are one op, which stores nothing
    between them."""
    before, area, most = tokens * spec.width, 1, 2 * tokens * spec.width
    for scale in spec.head_scales[:-1]:
        after = tokens * area * spec.head_channels
        most = max(most, before + after)
        before, area = after, area * scale * scale
    enlarges = len(spec.head_scales) > 1 and spec.head_scales[-2] > 1 and spec.head_kernel > 1
    kept = before if enlarges else before + 2 * tokens * area * spec.head_channels
    last = spec.head_scales[-1] ** 2
    return int(max(most, kept + (logits if last == 1 else logits + logits // last)))
