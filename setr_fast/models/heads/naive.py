"""SETR-Naive: one 1x1 convolution, classifier, one large upsampling (left to the model's last resize).

mmsegmentation upsamples by 4 before the classifier (``head_scales=(4,)``), and in its ADE20K config has two
such stages in the auxiliary heads (``aux_scales=(4, 4)``).

Source: Zheng et al. 2021, arXiv 2012.15840, section 3.3 (1).
"""

from __future__ import annotations

from setr_fast.models.heads.upsampling import UpsamplingHead
from setr_fast.models.spec import ModelSpec


def naive_head(spec: ModelSpec) -> UpsamplingHead:
    """Return the main head."""
    return UpsamplingHead(spec, spec.head_channels, spec.head_kernel, spec.head_scales)


def naive_aux_head(spec: ModelSpec) -> UpsamplingHead:
    """Return one auxiliary head."""
    return UpsamplingHead(spec, spec.aux_channels, spec.aux_kernel, spec.aux_scales)
