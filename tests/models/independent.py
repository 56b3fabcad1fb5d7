"""The same models once more, from the formulas: explicit sums, interpolation matrices, no module of the package.

Slow and plain on purpose. It reads a state dict and a spec, and shares no code path with setr_fast.models.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


def layer_norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, state[f"{name}.weight"])
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def block(x: Tensor, state: State, name: str, heads: int, eps: float) -> Tensor:
    width = x.shape[-1]
    each = width // heads
    qkv = linear(layer_norm(x, state, f"{name}.norm1", eps), state, f"{name}.attn.qkv")
    outputs = []
    for head in range(heads):
        q, k, v = (qkv[..., part * width + head * each : part * width + (head + 1) * each] for part in range(3))
        scores = torch.einsum("bie,bje->bij", q, k) / math.sqrt(each)
        scores = (scores - scores.amax(-1, keepdim=True)).exp()
        outputs.append(torch.einsum("bij,bje->bie", scores / scores.sum(-1, keepdim=True), v))
    x = x + linear(torch.cat(outputs, -1), state, f"{name}.attn.proj")
    hidden = linear(layer_norm(x, state, f"{name}.norm2", eps), state, f"{name}.mlp.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, state, f"{name}.mlp.fc2")


def conv(x: Tensor, state: State, name: str) -> Tensor:
    """Convolution with zero padding that keeps the size, as a sum over the kernel's places."""
    weight = state[f"{name}.weight"]
    kernel, (height, width) = weight.shape[-1], x.shape[-2:]
    padded = x.new_zeros(*x.shape[:2], height + kernel - 1, width + kernel - 1)
    start = kernel // 2
    padded[..., start : start + height, start : start + width] = x
    y = sum(
        torch.einsum("bchw,oc->bohw", padded[..., i : i + height, j : j + width], weight[..., i, j])
        for i in range(kernel)
        for j in range(kernel)
    )
    return y + state[f"{name}.bias"][:, None, None] if f"{name}.bias" in state else y


def stage(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    x = conv(x, state, f"{name}.conv")
    mean, variance = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
    scale = state[f"{name}.bn.weight"] / (variance + eps).sqrt()
    return ((x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bn.bias"][:, None, None]).clamp_min(0)


def weights_1d(old: int, new: int, mode: str, align_corners: bool) -> Tensor:
    """Interpolation as a matrix [new, old]."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        if align_corners:
            source = i * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            source = (i + 0.5) * old / new - 0.5
        if mode == "bilinear":
            source = max(source, 0.0)
            low = min(int(source), old - 1)
            high = min(low + 1, old - 1)
            matrix[i, low] += 1 - (source - low)
            matrix[i, high] += source - low
        else:
            for tap in range(math.floor(source) - 1, math.floor(source) + 3):
                matrix[i, min(max(tap, 0), old - 1)] += keys(abs(source - tap))
    return matrix


def keys(t: float, a: float = -0.75) -> float:
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def interpolate(x: Tensor, size: tuple[int, int], mode: str = "bilinear", align_corners: bool = False) -> Tensor:
    rows = weights_1d(x.shape[-2], size[0], mode, align_corners).to(x.dtype)
    columns = weights_1d(x.shape[-1], size[1], mode, align_corners).to(x.dtype)
    return torch.einsum("ih,bchw,jw->bcij", rows, x, columns)


def tokens_to_map(x: Tensor, h: int, w: int) -> Tensor:
    return torch.stack([x[:, row * w : (row + 1) * w] for row in range(h)], 1).permute(0, 3, 1, 2)


def encode(spec: Any, state: State, image: Tensor) -> tuple[list[Tensor], int, int]:
    """Return the tapped patch tokens and the grid."""
    patch, (height, width) = spec.patch_size, image.shape[-2:]
    if spec.fit == "pad":
        h, w = math.ceil(height / patch), math.ceil(width / patch)
        padded = image.new_zeros(*image.shape[:2], h * patch, w * patch)
        padded[..., :height, :width] = image
    else:
        h, w = height // patch, width // patch
        padded = image[..., : h * patch, : w * patch]
    kernel = state["encoder.patch_embed.weight"]
    x = torch.einsum("bchpwq,dcpq->bhwd", padded.reshape(len(image), -1, h, patch, w, patch), kernel)
    x = x.reshape(len(image), h * w, -1) + state.get("encoder.patch_embed.bias", torch.zeros(()))
    leading = 2 if spec.distilled else 1
    table = state["encoder.pos_embed"]
    grid = tokens_to_map(table[:, leading:], *spec.pos_grid)
    grid = interpolate(grid, (h, w), spec.pos_resize if spec.pos_resize != "none" else "bilinear")
    x = x + grid.flatten(2).transpose(1, 2)
    if spec.class_token == "keep":
        names = ["cls_token", "dist_token"][:leading]
        front = [state[f"encoder.{name}"][0] + table[0, i] for i, name in enumerate(names)]
        x = torch.cat([torch.stack([torch.cat(front)] * len(image)), x], 1)
    taps = []
    for index in range(spec.depth):
        x = block(x, state, f"encoder.blocks.{index}", spec.num_heads, spec.layer_norm_eps)
        if index in spec.taps:
            taps.append(x)
    if spec.final_norm:
        taps[-1] = layer_norm(taps[-1], state, "encoder.norm", spec.final_norm_eps)
    return [tap[:, tap.shape[1] - h * w :] for tap in taps], h, w


def up_head(spec: Any, state: State, name: str, tap: Tensor, h: int, w: int, scales: tuple[int, ...]) -> Tensor:
    x = tokens_to_map(layer_norm(tap, state, f"{name}.norm", spec.head_norm_eps), h, w)
    for index, scale in enumerate(scales):
        x = stage(x, state, f"{name}.stages.{index}", spec.batch_norm_eps)
        x = interpolate(x, (x.shape[-2] * scale, x.shape[-1] * scale), align_corners=spec.head_align_corners)
    return conv(x, state, f"{name}.classifier")


def mask_head(spec: Any, state: State, tap: Tensor, h: int, w: int) -> Tensor:
    x = linear(tap, state, "head.proj_in")
    x = torch.cat([x, torch.cat([state["head.class_embed"]] * len(x))], 1)
    for index in range(spec.decoder_depth):
        x = block(x, state, f"head.blocks.{index}", spec.decoder_num_heads, spec.decoder_layer_norm_eps)
    x = layer_norm(x, state, "head.norm", spec.decoder_norm_eps)
    patches = torch.einsum("bnd,de->bne", x[:, : h * w], state["head.proj_patch"])
    classes = torch.einsum("bkd,de->bke", x[:, h * w :], state["head.proj_class"])
    patches = patches / (patches**2).sum(-1, keepdim=True).sqrt()
    classes = classes / (classes**2).sum(-1, keepdim=True).sqrt()
    masks = torch.einsum("bne,bke->bnk", patches, classes)
    return tokens_to_map(layer_norm(masks, state, "head.mask_norm", spec.decoder_norm_eps), h, w)


def mla_levels(spec: Any, state: State, taps: list[Tensor], h: int, w: int) -> list[Tensor]:
    count, eps = len(taps), spec.batch_norm_eps
    norms = [0] * count if spec.shared_modules else list(range(count))
    total: Tensor | None = None
    levels: list[Tensor] = []
    for n in range(count - 1, -1, -1):
        x = tokens_to_map(layer_norm(taps[n], state, f"neck.norms.{norms[n]}", spec.head_norm_eps), h, w)
        x = stage(x, state, f"neck.reduce.{n}", eps)
        total = x if total is None else total + x
        levels.insert(0, stage(total, state, f"neck.smooth.{n}", eps))
    return levels


def all_logits(spec: Any, state: State, image: Tensor) -> list[Tensor]:
    """Return the main and the auxiliary logits before the last resize, with batch norms in eval mode."""
    taps, h, w = encode(spec, state, image)
    if spec.head == "linear":
        return [tokens_to_map(linear(taps[-1], state, "head.classifier"), h, w)]
    if spec.head == "mask":
        return [mask_head(spec, state, taps[-1], h, w)]
    aux_names = [f"aux_heads.{0 if spec.shared_modules else j}" for j in range(len(spec.aux_levels))]
    if spec.head in ("naive", "pup"):
        main = up_head(spec, state, "head", taps[-1], h, w, spec.head_scales)
        pairs = zip(aux_names, spec.aux_levels, strict=True)
        return [main] + [up_head(spec, state, name, taps[n], h, w, spec.aux_scales) for name, n in pairs]
    levels = mla_levels(spec, state, taps, h, w)
    branches = []
    for n, x in enumerate(levels):
        for part in range(2):
            x = stage(x, state, f"head.branches.{0 if spec.shared_modules else n}.{part}", spec.batch_norm_eps)
        size = (h * spec.branch_scale, w * spec.branch_scale)
        branches.append(interpolate(x, size, align_corners=spec.head_align_corners))
    main = conv(torch.cat(branches[::-1] if spec.deep_first else branches, 1), state, "head.classifier")
    return [main] + [
        conv(levels[n], state, f"{name}.classifier") for name, n in zip(aux_names, spec.aux_levels, strict=True)
    ]


def full_logits(spec: Any, logits: Tensor, image: Tensor, h: int, w: int) -> Tensor:
    """Return logits at the picture's size."""
    size = (h * spec.patch_size, w * spec.patch_size) if spec.resize_to == "padded" else tuple(image.shape[-2:])
    full = interpolate(logits, size, align_corners=spec.align_corners)
    return full[..., : image.shape[-2], : image.shape[-1]]


def cross_entropy(logits: Tensor, labels: Tensor, averaging: str) -> Tensor:
    """Return the mean of -log softmax at the label, pixel by pixel."""
    total, valid = logits.new_zeros(()), 0
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    for picture, row, column in labels.ne(255).nonzero().tolist():
        total = total - probability[picture, int(labels[picture, row, column]), row, column].log()
        valid += 1
    return total / (labels.numel() if averaging == "all" else max(valid, 1))
