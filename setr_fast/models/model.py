"""The model: picture in, logits, loss or class map out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from setr_fast.errors import ShapeError
from setr_fast.models.catalog import model_spec
from setr_fast.models.encoder import Encoder
from setr_fast.models.heads.absent import AbsentHead
from setr_fast.models.heads.linear import LinearHead
from setr_fast.models.heads.mask_transformer import MaskTransformerHead
from setr_fast.models.heads.mla import MlaAuxHead, MlaHead, MlaNeck
from setr_fast.models.heads.naive import naive_aux_head, naive_head
from setr_fast.models.heads.pup import pup_aux_head, pup_head
from setr_fast.models.spec import ModelSpec
from setr_fast.nn.conv import resize
from setr_fast.ops.patch_embed import channels_and_size
from setr_fast.ops.upsample_cross_entropy import LossAndAccuracy, upsample_cross_entropy
from setr_fast.shapes import Grid

if TYPE_CHECKING:
    import numpy as np

HEADS: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "naive": naive_head,
    "pup": pup_head,
    "mla": MlaHead,
    "linear": LinearHead,
    "mask": MaskTransformerHead,
    "none": AbsentHead,
}
AUX_HEADS: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "naive": naive_aux_head,
    "pup": pup_aux_head,
    "mla": MlaAuxHead,
    "linear": LinearHead,
    "mask": MaskTransformerHead,
    "none": AbsentHead,
}


class SegmentationModel(nn.Module):
    """A plain vision transformer with a segmentation head.

    Children: ``encoder``, ``neck`` (MLA only), ``head``, ``aux_heads`` (used by all_logits and loss only).
    """

    takes_bytes = True
    """Pictures may be uint8 [B, H, W, 3]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.neck = MlaNeck(spec) if spec.has_neck else None
        self.head = HEADS[spec.head](spec)
        distinct = min(len(spec.aux_levels), 1) if spec.shared_modules else len(spec.aux_levels)
        self.aux_heads = nn.ModuleList(AUX_HEADS[spec.head](spec) for _ in range(distinct))

    def forward(self, image: Tensor) -> Tensor:
        """Per-pixel class logits [B, K, H, W] of pictures of any H and W.

        Like every method here it takes bytes, uint8 [B, H, W, 3] RGB, or pictures [B, C, H, W] that were normalised
        with the spec's mean and std.
        """
        grid = self.grid(image)
        logits_BKhw = self.head(self.levels(image, grid), grid)
        logits_BKHW = resize(logits_BKhw, self.resize_size(grid), self.spec.align_corners)
        return logits_BKHW[..., : grid.image[0], : grid.image[1]]

    def logits(self, image: Tensor) -> Tensor:
        """Logits of the main head before the last resize, [B, K, h, w]."""
        grid = self.grid(image)
        return self.head(self.levels(image, grid), grid)

    def all_logits(self, image: Tensor) -> list[Tensor]:
        """Logits of the main head and of each auxiliary one, before the last resize, in the family's order."""
        grid = self.grid(image)
        levels = self.levels(image, grid)
        aux = [
            self.aux_heads[index % len(self.aux_heads)]((levels[level],), grid)
            for index, level in enumerate(self.spec.aux_levels)
        ]
        return [self.head(levels, grid), *aux]

    def loss(self, image: Tensor, labels_BHW: Tensor) -> Tensor:
        """Cross entropy of the main head plus the weighted auxiliary ones.

        Units: labels 0..K-1, ``spec.ignore_index`` is ignored.
        Raises: ShapeError when the labels are not as large as the picture.
        """
        return self.loss_and_accuracy(image, labels_BHW).loss

    def loss_and_accuracy(
        self, image: Tensor, labels_BHW: Tensor, criterion: Callable[..., LossAndAccuracy] = upsample_cross_entropy
    ) -> LossAndAccuracy:
        """Loss of the main head plus the weighted auxiliary ones, and the main head's pixel accuracy.

        ``criterion(logits_low, labels, size=, align_corners=, ignore_index=, averaging=)`` judges every head.
        Units, Raises: as ``loss``.
        """
        grid = self.grid(image)
        if tuple(labels_BHW.shape) != (len(image), *grid.image):
            want, got = (len(image), *grid.image), tuple(labels_BHW.shape)
            raise ShapeError(f"loss: labels must be as large as the pictures, {want}, got {got}")
        (main, accuracy), *aux = (
            criterion(
                logits_BKhw,
                labels_BHW,
                size=self.resize_size(grid),
                align_corners=self.spec.align_corners,
                ignore_index=self.spec.ignore_index,
                averaging=self.spec.loss_averaging,
            )
            for logits_BKhw in self.all_logits(image)
        )
        if aux:
            main = main + self.spec.aux_weight * torch.stack([loss for loss, _ in aux]).sum()
        return LossAndAccuracy(main, accuracy)

    def levels(self, image: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """What the heads read: tapped tokens [B, N, D], or with a neck its maps [B, C, h, w]; shallow to deep."""
        taps = self.encoder(image, grid)
        return taps if self.neck is None else self.neck(taps, grid)

    def grid(self, image: Tensor) -> Grid:
        """Return the patches that a picture is seen as; the only place where sizes are worked out.

        Raises: ShapeError for a picture that the model does not take.
        """
        spec = self.spec
        try:
            channels, size = channels_and_size(image)
        except ShapeError as error:
            raise ShapeError(f"{spec.name}: {error}") from None
        if channels != spec.in_chans:
            kinds = f"[B, {spec.in_chans}, H, W]" + (", or bytes [B, H, W, 3]" if spec.in_chans == 3 else "")
            raise ShapeError(f"{spec.name}: pictures must be {kinds}, got {tuple(image.shape)}")
        return self.grid_of(size)

    def grid_of(self, size: tuple[int, int]) -> Grid:
        """Return the patches of a picture of this height and width.

        Raises: ShapeError for a size that the model does not take.
        """
        spec = self.spec
        cover = Grid.covering if spec.fit == "pad" else Grid.inside
        grid = cover(size, spec.patch_size)
        if min(grid.h, grid.w) < 1:
            raise ShapeError(f"{spec.name}: pictures must hold a patch of {spec.patch_size} pixels, got {size}")
        if spec.pos_resize == "none" and (grid.h, grid.w) != spec.pos_grid:
            want = (spec.pos_grid[0] * spec.patch_size, spec.pos_grid[1] * spec.patch_size)
            raise ShapeError(
                f"{spec.name}: pictures must be {want} pixels, got {size}; slide windows of that size, or load with "
                "pos_resize='bilinear'"
            )
        return grid

    def resize_size(self, grid: Grid) -> tuple[int, int]:
        """Height and width that the last resize gives, before any crop."""
        return grid.pixels if self.spec.resize_to == "padded" else grid.image

    def logits_geometry(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return, for a picture of this size, the height and width of ``logits`` and of what they are resized to."""
        spec, grid = self.spec, self.grid_of(size)
        scale = math.prod(spec.head_scales) if spec.head in ("naive", "pup") else 1
        scale = spec.branch_scale if spec.head == "mla" else scale
        return (grid.h * scale, grid.w * scale), self.resize_size(grid)

    def predict(
        self,
        image: Any,
        mode: str | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        **options: Any,
    ) -> np.ndarray:
        """Class indices [H, W] at the picture's own size; image: path, PIL picture or uint8 RGB [H, W, 3].

        The options are fields of ``InferenceConfig``.
        """
        from setr_fast.engine.options import InferenceConfig
        from setr_fast.engine.predictor import predict
        from setr_fast.fields import known_names

        known_names(InferenceConfig, options, where="predict")
        config = InferenceConfig(mode=mode or "auto", scales=tuple(scales), flip=flip, **options)  # type: ignore[arg-type]
        return predict(self, image, config)

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder."""
        from setr_fast.models.store import save_model

        save_model(self, folder)


def create_model(
    name: str, num_classes: int, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> SegmentationModel:
    """Build a catalog model with random weights, in training mode.

    The overrides are fields of ``ModelSpec``. The same torch seed gives the same weights.

    Raises: ConfigError for an unknown name or option.
    """
    return SegmentationModel(model_spec(name, num_classes, image_size, **overrides))
