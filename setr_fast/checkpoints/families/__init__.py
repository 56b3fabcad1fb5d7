"""The code bases whose checkpoints are known."""

from __future__ import annotations

from setr_fast.checkpoints.families.family import Family, Shapes
from setr_fast.checkpoints.families.jax import JAX
from setr_fast.checkpoints.families.mmseg import MMSEG
from setr_fast.checkpoints.families.paddleseg import PADDLESEG
from setr_fast.checkpoints.families.paddlevit import PADDLEVIT
from setr_fast.checkpoints.families.segmenter import SEGMENTER
from setr_fast.checkpoints.families.setr_official import SETR
from setr_fast.checkpoints.families.timm import TIMM

FAMILIES: dict[str, Family] = {
    family.name: family for family in (SETR, MMSEG, PADDLESEG, PADDLEVIT, SEGMENTER, JAX, TIMM)
}
__all__ = ["FAMILIES", "Family", "Shapes"]
