"""Random small models of every family and head, and files in the family's own format.

The constants of each code base stand here a second time, from its description and not from the loader.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from setr_fast.checkpoints.families import FAMILIES
from setr_fast.checkpoints.rules import export_tensors
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec

HALF = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
ROUNDED = {"mean": (123.68, 116.28, 103.53), "std": (58.40, 57.12, 57.38)}
HEADS = {
    "setr": ("naive", "pup", "mla"),
    "mmseg": ("naive", "pup", "mla", "linear", "mask", "none"),
    "paddleseg": ("naive", "pup", "mla", "linear", "mask", "none"),
    "paddlevit": ("naive", "pup", "mla", "linear", "mask", "none"),
    "segmenter": ("linear", "mask"),
    "jax": ("none",),
    "timm": ("none",),
}
PAIRS = [(family, head) for family, heads in HEADS.items() for head in heads]


def random_spec(family: str, head: str, seed: int) -> ModelSpec:
    """Return a spec that the family's code can have made, of random sizes."""
    draw = random.Random(f"{family} {head} {seed}")
    heads = draw.choice((1, 2, 3, 4))
    patch = draw.choice((4, 8, 16))
    rows = draw.randint(1, 4)
    grid = (rows, rows if head == "none" else draw.randint(1, 4))  # tables of encoder files are square
    setr = head in ("naive", "pup", "mla")
    depth = draw.randint(4, 7) if setr else draw.randint(1, 4)
    width = heads * draw.choice((4, 6, 10))
    decoder_heads = draw.choice((1, 2, 3))
    values: dict[str, Any] = {
        "name": f"{family}_{head}",
        "head": head,
        "num_classes": 1 if head == "none" else draw.randint(2, 9),
        "image_size": (grid[0] * patch, grid[1] * patch),
        "pos_grid": grid,
        "patch_size": patch,
        "width": width,
        "num_heads": heads,
        "depth": depth,
        "mlp_ratio": draw.choice((1.0, 2.5, 4.0)),
        "taps": tuple(sorted(draw.sample(range(depth), 4))) if setr else (depth - 1,),
        "aux_levels": (),
    }
    if head == "mask":
        values |= {"decoder_width": decoder_heads * draw.choice((4, 8)), "decoder_num_heads": decoder_heads}
        values |= {"decoder_depth": draw.randint(1, 3), "decoder_mlp_ratio": draw.choice((2.0, 4.0))}
    if setr:
        values |= {"head_channels": draw.choice((4, 6)), "aux_levels": (0, 1, 2) if head == "naive" else (0, 1, 2, 3)}
        if head == "mla":
            values |= {"branch_channels": draw.choice((3, 5))}
        else:
            values |= {"aux_channels": draw.choice((4, 5))}
    values |= _FIXED[family](head, values, draw)
    return ModelSpec.from_dict(values)


def _up(head: str, kernel_of_naive: int = 1) -> dict[str, Any]:
    """Stages of the official heads."""
    if head == "naive":
        return {"head_kernel": kernel_of_naive, "aux_kernel": kernel_of_naive, "head_scales": (1,), "aux_scales": (1,)}
    return {"head_scales": (2, 2, 2, 1), "aux_scales": (4,)} if head == "pup" else {}


def _two_thirds(values: dict[str, Any]) -> dict[str, Any]:
    return {"stride": tuple(max(side * 2 // 3, 1) for side in values["image_size"])}


def _setr(head: str, values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    fixed: dict[str, Any] = {"pos_resize": "none", "resize_to": "input", "loss_averaging": "all"}
    if head == "mla":
        fixed |= {"class_token": "drop", "conv_bias": False, "classifier_kernel": 3, "head_align_corners": True}
    fixed |= _up(head, draw.choice((1, 3)))
    if head == "pup" and values["patch_size"] != 16:  # it enlarges 16 times, whatever the patches
        fixed["head_scales"] = (2, 2, 2, 2)
    return fixed | _two_thirds(values)


def _mmseg(head: str, values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    fixed: dict[str, Any] = {"pos_resize_when": "tokens", "resize_to": "input", "loss_averaging": "all"}
    fixed |= {"drop_path_on": "ffn", "patch_bias": draw.choice((True, False))}
    if head in ("naive", "pup"):
        kernel = 1 if head == "naive" else 3
        fixed |= {"head_kernel": kernel, "aux_kernel": kernel, "conv_bias": False, "aux_levels": (0, 1, 2)}
        fixed |= {"head_scales": (4,) if head == "naive" else (2, 2, 2, 2), "aux_scales": draw.choice(((4,), (4, 4)))}
    if head == "mla":
        fixed |= {"class_token": "drop", "conv_bias": False, "aux_levels": (3, 2, 1, 0), "aux_bias": True}
        fixed |= {"deep_first": True}
    if head in ("linear", "mask"):
        fixed |= {"final_norm": True, "pos_resize": "bicubic", **HALF}
        fixed["stride"] = tuple(max(side - 32, 1) for side in values["image_size"])
        return fixed
    if head == "none":
        fixed["final_norm"] = draw.choice((True, False))
    return fixed | _two_thirds(values)


def _paddleseg(head: str, values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    fixed: dict[str, Any] = {"pos_resize": "bicubic", "pos_resize_when": "tokens", "fit": "floor", **HALF}
    fixed |= {"window_rule": "paddleseg", "merge": "logits", "resize_rule": "tensor"}
    fixed |= {"resize_to": "input", "shared_modules": True, "cosine_eps": 0.0, **_two_thirds(values)}
    if head in ("linear", "mask"):
        fixed |= {"layer_norm_eps": 1e-5, "final_norm_eps": 1e-5, "final_norm": True, "stride": values["image_size"]}
        return fixed | {"decoder_qkv_bias": head != "mask"}
    if head == "none":
        return fixed | {"final_norm": draw.choice((True, False))}
    fixed |= {"align_corners": True, **_up(head)}
    if head == "mla":
        fixed |= {"head_align_corners": True, "classifier_kernel": 3, "aux_bias": True}
    return fixed


def _paddlevit(head: str, values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    distilled = head not in ("naive", "pup", "mla") and draw.choice((True, False))
    fixed: dict[str, Any] = {"pos_resize": "none", "resize_to": "input", "distilled": distilled, **_two_thirds(values)}
    fixed["resize_rule"] = "tensor"
    if head in ("linear", "mask"):
        fixed |= {"final_norm": True, "final_norm_eps": 1e-5, "cosine_eps": 0.0, "stride": values["image_size"]}
        fixed |= {} if distilled else HALF
        if head == "mask":  # its blocks are the encoder's
            fixed |= {"decoder_num_heads": values["num_heads"], "decoder_width": values["width"]}
        return fixed | {"decoder_layer_norm_eps": 1e-6}
    if head == "none":
        return fixed | {"final_norm": draw.choice((True, False)), "pos_resize": "bilinear"}
    fixed |= {"class_token": "drop", **_up(head)}
    if head == "mla":
        fixed |= {"conv_bias": False, "head_align_corners": True, "classifier_kernel": 3, "aux_levels": (0, 1, 2)}
    return fixed


def _segmenter(head: str, values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    distilled = draw.choice((True, False))
    fixed: dict[str, Any] = {"layer_norm_eps": 1e-5, "final_norm_eps": 1e-5, "final_norm": True, "cosine_eps": 0.0}
    fixed |= {"window_rule": "segmenter"}
    fixed |= {"pos_resize_when": "tokens", "distilled": distilled, **(ROUNDED if distilled else HALF)}
    if head == "mask":  # heads are the width // 64
        fixed |= {"decoder_width": 64 * draw.choice((1, 2))}
        fixed |= {"decoder_num_heads": fixed["decoder_width"] // 64}
    return fixed | {"stride": tuple(max(side - 32, 1) for side in values["image_size"])}


def _encoder(head: str, values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    return {"final_norm": draw.choice((True, False)), **HALF, **_two_thirds(values)}


def _timm(head: str, values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    distilled = draw.choice((True, False))
    return _encoder(head, values, draw) | {"distilled": distilled} | (IMAGENET if distilled else {})


_FIXED = {
    "setr": _setr,
    "mmseg": _mmseg,
    "paddleseg": _paddleseg,
    "paddlevit": _paddlevit,
    "segmenter": _segmenter,
    "jax": _encoder,
    "timm": _timm,
}


def random_state(spec: ModelSpec, family: str, seed: int = 0) -> dict[str, Tensor]:
    """Return tensors for every key of a spec's model, no two alike."""
    with torch.device("meta"):
        wanted = SegmentationModel(spec).state_dict()
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in wanted.items():
        if tensor.is_floating_point():
            state[name] = torch.randn(tensor.shape, generator=draw)
        else:  # Paddle counts no batches
            state[name] = torch.tensor(0 if family.startswith("paddle") else 7)
        if name.endswith("running_var"):
            state[name] = state[name].abs() + 0.1
    return state


def overrides_of(spec: ModelSpec) -> dict[str, Any]:
    """Return what the weights of a model cannot say."""
    given: dict[str, Any] = {"num_heads": spec.num_heads}
    if spec.head == "none":
        return given
    given["image_size"] = spec.image_size
    if spec.head == "mask":
        given["decoder_num_heads"] = spec.decoder_num_heads
    if spec.head in ("naive", "pup", "mla"):
        given["taps"] = spec.taps
    return given


def foreign_tensors(family: str, spec: ModelSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file of the family, the dead ones included."""
    known = FAMILIES[family]
    dead = {name: torch.zeros(shape) for name, shape in known.dead(spec).items()}
    return export_tensors(known.rules(spec), state) | dead


def write_file(family: str, tensors: dict[str, Tensor], folder: Path) -> Path:
    """Write tensors as the family's code does."""
    if family in ("paddleseg", "paddlevit"):
        content: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        content["StructuredToParameterName@@"] = {name: f"param_{i}" for i, name in enumerate(tensors)}
        path = folder / "model.pdparams"
        path.write_bytes(pickle.dumps(content, protocol=4))
        return path
    if family == "jax":
        path = folder / "vit.npz"
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
        return path
    if family == "timm":
        path = folder / "vit.safetensors"
        save_file(tensors, path)
        return path
    path = folder / "model.pth"
    wrapper = "model" if family == "segmenter" else "state_dict"
    torch.save({wrapper: tensors, "meta": {"epoch": 1}}, path)
    return path
