"""Networks of other code bases with the sizes of ours, for comparison; each needs what the extra ``peers`` installs.

mmsegmentation asks for compiled operations of mmcv, and through mmcv and timm for torchvision, for models that are not
ours. The stand-ins below let the models that we compare with be imported with mmcv-lite and without torchvision.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from setr_fast.checkpoints.export import export, write_export
from setr_fast.models.model import SegmentationModel

# Compiled operations that mmcv-lite lacks; mmsegmentation imports them for models that are not ours.
_OPS = (
    *("CrissCrossAttention", "DeformConv2d", "ModulatedDeformConv2d", "MultiScaleDeformableAttention", "PSAMask"),
    *("SAConv2d", "modulated_deform_conv2d", "point_sample", "sigmoid_focal_loss"),
)


class NotHere(Exception):
    """A peer that cannot be built here, with the reason."""


def mmsegmentation(model: SegmentationModel, folder: Path) -> Callable[[Tensor], Tensor]:
    """Return mmsegmentation's own network with the weights of ``model``: normalised pictures to full-size logits."""
    registry = mmsegmentation_models()
    config = importlib.import_module("mmengine.config").Config
    write_export(export("mmseg", model.spec, model.state_dict()), folder / "model.pth")
    peer = registry.build(config.fromfile(str(folder / "model.py")).model).eval()
    peer.load_state_dict(torch.load(folder / "model.pth", weights_only=True)["state_dict"], strict=True)
    size = model.spec.image_size

    def run(picture: Tensor) -> Tensor:
        logits: Tensor = peer.encode_decode(picture, [{"img_shape": size}] * len(picture))
        return logits

    return run


def mmsegmentation_models() -> Any:
    """Return the registry of mmsegmentation's models; NotHere if it is not installed."""
    _require("mmseg", "mmsegmentation")
    try:
        importlib.import_module("mmcv.ops")
    except ImportError:
        for name in ("mmcv.ops", "mmcv.ops.multi_scale_deform_attn"):
            module = types.ModuleType(name)
            module.__file__ = __file__
            for op in _OPS:
                setattr(module, op, type(op, (nn.Module,), {}))
            sys.modules[name] = module
    importlib.import_module("mmseg.models")
    importlib.import_module("mmengine.registry").init_default_scope("mmseg")
    return importlib.import_module("mmseg.registry").MODELS


def segformer(model: SegmentationModel) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """Return SegFormer-B0 of transformers with random weights, and how it takes pictures to full-size logits."""
    library = _transformers()
    network = library.SegformerForSemanticSegmentation(library.SegformerConfig(num_labels=model.spec.num_classes))

    def run(net: nn.Module, picture: Tensor) -> Tensor:
        return _resized(net(pixel_values=picture).logits, picture)

    return network.eval(), run


def eomt(model: SegmentationModel) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """Return EoMT of transformers with our encoder's sizes and random weights, and how it scores classes per pixel."""
    library, spec = _transformers(), model.spec
    config = library.EomtConfig(
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.num_heads,
        image_size=spec.image_size[0],
        patch_size=spec.patch_size,
        num_labels=spec.num_classes,
        num_queries=100,
        num_blocks=max(1, spec.depth // 6),
    )

    def run(net: nn.Module, picture: Tensor) -> Tensor:
        found = net(pixel_values=picture)
        scores = found.class_queries_logits.softmax(-1)[..., :-1]
        masks = _resized(found.masks_queries_logits, picture).sigmoid()
        return torch.einsum("bqc,bqhw->bchw", scores, masks)

    return library.EomtForUniversalSegmentation(config).eval(), run


def _resized(logits: Tensor, picture: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(logits, picture.shape[-2:], mode="bilinear", align_corners=False)


def _transformers() -> Any:
    _require("transformers", "transformers")
    return importlib.import_module("transformers")


def _require(module: str, package: str) -> None:
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(module) is not None:
            return
    raise NotHere(f"{package} is not installed; pip install -e .[peers]")
