// The schemas of the kernels that exported programs call, for processes without Python: there ops/_op.py defines them.
// libsetr_fast_ops.so is this file and the kernels' own; never load it beside setr_fast in Python, where the names are
// taken. A test holds the texts equal to those of the declarations.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(setr_fast_native, m) {
  m.def(
      "upsample_conv(Tensor x, Tensor weight, Tensor? bias, SymInt height, SymInt width, bool align_corners, bool relu)"
      " -> Tensor");
  m.def(
      "upsample_conv_classify(Tensor x, Tensor weight, Tensor? bias, Tensor classes, Tensor? class_bias,"
      " SymInt height, SymInt width, bool align_corners) -> Tensor");
  m.def("upsample_argmax(Tensor logits, SymInt[] size, SymInt[] crop, bool align_corners) -> Tensor");
}
