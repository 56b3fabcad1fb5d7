// Registers the CUDA upsample_argmax: checks, stream, launch. UNMEASURED, see the .cu.
#include "upsample_argmax.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"
#include "stream.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostBlocks = 65535;  // along the second and third dimension of a grid

Tensor upsample_argmax(const Tensor logits, torch::headeronly::HeaderOnlyArrayRef<int64_t> size,
                       torch::headeronly::HeaderOnlyArrayRef<int64_t> crop, bool align_corners) {
  check(logits.dim() == 4, "upsample_argmax: logits must be [B, K, h, w], got ", logits.dim(), " dimensions");
  const bool bfloat16 = logits.scalar_type() == ScalarType::BFloat16;
  check(bfloat16 || logits.scalar_type() == ScalarType::Float, "upsample_argmax: logits must be float32 or bfloat16");
  check(size.size() == 2 && crop.size() == 2, "upsample_argmax: size and crop must be two numbers each");
  check(logits.size(1) >= 1 && logits.size(2) >= 1 && logits.size(3) >= 1,
        "upsample_argmax: logits must have classes, rows and columns");
  check(crop[0] >= 0 && crop[1] >= 0 && crop[0] <= size[0] && crop[1] <= size[1],
        "upsample_argmax: crop must lie within the size ", pair_text(size[0], size[1]), ", got ",
        pair_text(crop[0], crop[1]));
  check(logits.size(0) <= kMostBlocks && crop[0] <= kMostBlocks, "upsample_argmax: batch and rows must be at most ",
        kMostBlocks, ", got ", pair_text(logits.size(0), crop[0]));
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device());
  const bool wide = logits.size(1) > 256;
  Tensor out =
      torch::stable::new_empty(logits, {logits.size(0), crop[0], crop[1]}, wide ? ScalarType::Short : ScalarType::Byte);
  const SmallLogits small{logits.const_data_ptr(), bfloat16,        logits.size(0),   logits.size(1),
                          logits.size(2),          logits.size(3),  logits.stride(0), logits.stride(1),
                          logits.stride(2),        logits.stride(3)};
  cuda_check("upsample_argmax",
             launch_upsample_argmax(small, size[0], size[1], crop[0], crop[1], align_corners, out.mutable_data_ptr(),
                                    wide, current_stream(logits.get_device())));
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CUDA, m) { m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax)); }

}  // namespace
}  // namespace setr_fast
