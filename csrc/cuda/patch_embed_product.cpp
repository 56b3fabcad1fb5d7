// Registers the fused CUDA patch embedding: checks, stream, launch. UNMEASURED, see the .cu.
#include "patch_embed_product.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../checks.h"
#include "stream.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

TokenType token_type(ScalarType dtype) {
  if (dtype == ScalarType::Float) return TokenType::kFloat;
  if (dtype == ScalarType::BFloat16) return TokenType::kBFloat16;
  check(dtype == ScalarType::Half, "patch_embed_product: dtype must be float32, bfloat16 or float16");
  return TokenType::kHalf;
}

constexpr uintptr_t kCopy = 16;  // bytes of a copy of the kernel

bool on_copies(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kCopy == 0; }

// Packed and starting where copies can start, which a view into other memory may not: copied unless it is so already.
Tensor readable(const Tensor& tensor) {
  const Tensor packed = torch::stable::contiguous(tensor);
  if (on_copies(packed)) return packed;
  Tensor copy = torch::stable::new_empty(packed, packed.sizes());
  return torch::stable::copy_(copy, packed);
}

// The picture as the kernel may read it: its lines need not follow each other, but must start where copies can.
Tensor readable_picture(const Tensor& image) {
  const bool in_order = image.stride(3) == 1 && image.stride(2) == kPatchChannels;
  const auto steps = static_cast<uintptr_t>(image.stride(0)) | static_cast<uintptr_t>(image.stride(1));
  return in_order && steps % kCopy == 0 && on_copies(image) ? image : readable(image);
}

Tensor patch_embed_product(const Tensor image, const Tensor factor, const Tensor addend, int64_t patch, int64_t h,
                           int64_t w, std::vector<double> shift, double scale, ScalarType dtype) {
  check(image.scalar_type() == ScalarType::Byte && image.dim() == 4 && image.size(3) == kPatchChannels,
        "patch_embed_product: image must be uint8 [B, H, W, ", kPatchChannels, "]");
  check(patch >= 1 && h >= 1 && w >= 1 && shift.size() == kPatchChannels,
        "patch_embed_product: patch and grid must be at least 1, shift ", kPatchChannels, " numbers");
  check(factor.scalar_type() == ScalarType::Half && factor.dim() == 2 &&
            factor.size(1) == patch * patch * kPatchChannels && factor.size(0) >= 1,
        "patch_embed_product: factor must be float16 [D, ", patch * patch * kPatchChannels, "]");
  const int64_t outputs = factor.size(0);
  check(addend.scalar_type() == ScalarType::Float && addend.dim() == 2 && addend.size(0) == h * w &&
            addend.size(1) == outputs,
        "patch_embed_product: addend must be float32 [", h * w, ", ", outputs, "]");
  check(factor.get_device() == image.get_device() && addend.get_device() == image.get_device(),
        "patch_embed_product: factor and addend must be on the device of the image");
  const torch::stable::accelerator::DeviceGuard guard(image.get_device());
  const Tensor pixels = readable_picture(image), packed_factor = readable(factor), packed_addend = readable(addend);
  PatchProduct product{
      static_cast<const uint8_t*>(pixels.const_data_ptr()),
      {pixels.size(0), pixels.size(1), pixels.size(2), pixels.stride(0), pixels.stride(1), patch, h, w},
      {},
      packed_factor.const_data_ptr(),
      static_cast<const float*>(packed_addend.const_data_ptr()),
      static_cast<float>(scale),
      outputs};
  for (int channel = 0; channel < kPatchChannels; ++channel) {
    product.shift[channel] = static_cast<int>(shift[channel]);
    check(product.shift[channel] == shift[channel] && shift[channel] >= 0 && shift[channel] <= 255,
          "patch_embed_product: shift must be whole numbers of 0 to 255, got ", shift[channel]);
  }
  check(
      fits_patch_embed_product(product),
      "patch_embed_product: patch must be a multiple of 16, D of 8, patches must lie inside the picture and its lines "
      "on 16 bytes");
  Tensor tokens = torch::stable::new_empty(addend, {image.size(0), h * w, outputs}, dtype);
  cuda_check("patch_embed_product", launch_patch_embed_product(product, token_type(dtype), tokens.mutable_data_ptr(),
                                                               current_stream(image.get_device())));
  return tokens;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CUDA, m) { m.impl("patch_embed_product", TORCH_BOX(&patch_embed_product)); }

}  // namespace
}  // namespace setr_fast
