"""The ops of setr_fast: one file each, all reachable as ``setr_fast.ops.<name>``."""

from setr_fast.ops._op import OPS, backend, check_forced
from setr_fast.ops.attention import attention
from setr_fast.ops.augment_image import augment_image
from setr_fast.ops.augment_label import augment_label
from setr_fast.ops.confusion_matrix import confusion_matrix
from setr_fast.ops.patch_embed import patch_embed
from setr_fast.ops.patch_embed_rows import patch_embed_rows
from setr_fast.ops.upsample_accumulate import upsample_accumulate, upsample_accumulate_argmax
from setr_fast.ops.upsample_argmax import upsample_argmax

__all__ = [
    "OPS",
    "attention",
    "augment_image",
    "augment_label",
    "backend",
    "confusion_matrix",
    "patch_embed",
    "patch_embed_rows",
    "upsample_accumulate",
    "upsample_accumulate_argmax",
    "upsample_argmax",
]
from setr_fast.ops.upsample_conv import upsample_conv
from setr_fast.ops.upsample_conv_classify import upsample_conv_classify

__all__ = [
    "OPS",
    "attention",
    "augment_image",
    "augment_label",
    "backend",
    "confusion_matrix",
    "upsample_conv",
    "upsample_conv_classify",
]

check_forced("SETR_FAST_BACKEND")
