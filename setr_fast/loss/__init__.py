"""Losses between low-resolution logits and full-size labels. None of them builds full-size logits."""

from setr_fast.loss.classwise import dice_loss, lovasz_loss
from setr_fast.loss.cross_entropy import segmentation_loss
from setr_fast.loss.pixelwise import focal_loss, ohem_loss
from setr_fast.ops.upsample_cross_entropy import LossAndAccuracy

__all__ = ["LossAndAccuracy", "dice_loss", "focal_loss", "lovasz_loss", "ohem_loss", "segmentation_loss"]
