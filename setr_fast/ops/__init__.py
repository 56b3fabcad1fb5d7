"""Operations with exchangeable backends; one file per op."""

from setr_fast.ops._op import OPS, backend, check_forced
from setr_fast.ops.add_layer_norm import add_layer_norm
from setr_fast.ops.attention import attention
from setr_fast.ops.attention_bytes import attention_bytes
from setr_fast.ops.augment_image import augment_image
from setr_fast.ops.augment_label import augment_label
from setr_fast.ops.confusion_matrix import confusion_matrix
from setr_fast.ops.layer_norm_bytes import layer_norm_bytes
from setr_fast.ops.patch_embed import patch_embed
from setr_fast.ops.patch_embed_product import patch_embed_product
from setr_fast.ops.patch_embed_rows import patch_embed_rows
from setr_fast.ops.to_bytes import to_bytes
from setr_fast.ops.upsample_accumulate import upsample_accumulate, upsample_accumulate_argmax
from setr_fast.ops.upsample_argmax import upsample_argmax
from setr_fast.ops.upsample_class_sums import upsample_class_sums
from setr_fast.ops.upsample_conv import upsample_conv
from setr_fast.ops.upsample_conv_classify import upsample_conv_classify
from setr_fast.ops.upsample_conv_statistics import upsample_conv_statistics
from setr_fast.ops.upsample_cross_entropy import upsample_cross_entropy
from setr_fast.ops.upsample_cross_entropy_map import upsample_cross_entropy_map
from setr_fast.ops.upsample_lovasz import upsample_lovasz

__all__ = [
    "OPS",
    "add_layer_norm",
    "attention",
    "attention_bytes",
    "augment_image",
    "augment_label",
    "backend",
    "confusion_matrix",
    "layer_norm_bytes",
    "patch_embed",
    "patch_embed_product",
    "patch_embed_rows",
    "to_bytes",
    "upsample_accumulate",
    "upsample_accumulate_argmax",
    "upsample_argmax",
    "upsample_class_sums",
    "upsample_conv",
    "upsample_conv_classify",
    "upsample_conv_statistics",
    "upsample_cross_entropy",
    "upsample_cross_entropy_map",
    "upsample_lovasz",
]

check_forced("SETR_FAST_BACKEND")
