// Registers the CUDA gather of patches: checks, stream, launch. UNMEASURED, see the .cu.
#include "patch_embed_rows.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../checks.h"
#include "../patch_arguments.h"
#include "stream.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

RowType row_type(ScalarType dtype) {
  if (dtype == ScalarType::Float) return RowType::kFloat;
  if (dtype == ScalarType::BFloat16) return RowType::kBFloat16;
  check(dtype == ScalarType::Half, "patch_embed_rows: dtype must be float32, bfloat16 or float16");
  return RowType::kHalf;
}

Tensor patch_embed_rows(const Tensor image, int64_t patch, int64_t h, int64_t w, std::vector<double> shift,
                        std::vector<double> scale, std::vector<double> fill, bool planar, ScalarType dtype) {
  const bool pictures = image.scalar_type() == ScalarType::Byte && image.dim() == 4;
  check_patches(pictures ? image.size(3) : 0, patch, h, w);
  const RowType type = row_type(dtype);
  const ByteScaling scaling = byte_scaling(shift, scale, fill);
  const torch::stable::accelerator::DeviceGuard guard(image.get_device());
  const bool in_order = image.stride(3) == 1 && image.stride(2) == kPatchChannels;
  const Tensor pixels = in_order ? image : torch::stable::contiguous(image);
  const PatchGrid grid{pixels.size(0), pixels.size(1), pixels.size(2), pixels.stride(0), pixels.stride(1), patch, h, w};
  Tensor rows = torch::stable::new_empty(image, {grid.pictures * h * w, patch * patch * kPatchChannels}, dtype);
  cuda_check("patch_embed_rows",
             launch_patch_embed_rows(static_cast<const uint8_t*>(pixels.const_data_ptr()), grid, scaling, planar, type,
                                     rows.mutable_data_ptr(), current_stream(image.get_device())));
  return rows;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CUDA, m) { m.impl("patch_embed_rows", TORCH_BOX(&patch_embed_rows)); }

}  // namespace
}  // namespace setr_fast
