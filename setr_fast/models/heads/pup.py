"""SETR-PUP: progressive upsampling, a 3x3 convolution in front of each factor of two.

The official code classifies before the last factor (``head_scales=(2, 2, 2, 1)``, the model's last resize does
the rest), mmsegmentation after it (``(2, 2, 2, 2)``): equal in real arithmetic, since a 1x1 convolution and
bilinear interpolation commute. The auxiliary heads upsample by 4 once (mmsegmentation: twice).

Source: Zheng et al. 2021, arXiv 2012.15840, section 3.3 (2).
"""

from __future__ import annotations

from setr_fast.models.heads.upsampling import UpsamplingHead
from setr_fast.models.spec import ModelSpec


def pup_head(spec: ModelSpec) -> UpsamplingHead:
    """Return the main head."""
    return UpsamplingHead(spec, spec.head_channels, spec.head_kernel, spec.head_scales)


def pup_aux_head(spec: ModelSpec) -> UpsamplingHead:
    """Return one auxiliary head."""
    return UpsamplingHead(spec, spec.aux_channels, spec.aux_kernel, spec.aux_scales)
