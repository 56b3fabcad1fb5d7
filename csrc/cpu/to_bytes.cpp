// Numbers to bytes by one scale and zero point, rounding to nearest even: what a product of bytes is given.
//
// Bound by memory: 4 bytes read for one written.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <vector>

#include "../checks.h"
#include "../variants.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 16;  // values that pay for waking a thread

SETR_FAST_VARIANTS void round_values(const float* from, int64_t count, float inverse, float zero, float most,
                                     uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    // In this order a NaN becomes 0: the comparison fails.
    float value = std::nearbyintf(from[i] * inverse) + zero;
    value = value > 0.0f ? value : 0.0f;
    to[i] = static_cast<uint8_t>(static_cast<int32_t>(value < most ? value : most));
  }
}

Tensor to_bytes(const Tensor x, double scale, int64_t zero, int64_t levels) {
  check(x.scalar_type() == ScalarType::Float, "to_bytes: x must be float32");
  const Tensor values = torch::stable::contiguous(x);
  std::vector<int64_t> shape;
  for (int64_t dim = 0; dim < x.dim(); ++dim) shape.push_back(x.size(dim));
  Tensor out = torch::stable::new_empty(values, shape, ScalarType::Byte);
  const auto* from = static_cast<const float*>(values.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const auto inverse = static_cast<float>(1.0 / scale);
  torch::stable::parallel_for(0, values.numel(), kGrain, [&](int64_t begin, int64_t end) {
    round_values(from + begin, end - begin, inverse, static_cast<float>(zero), static_cast<float>(levels), to + begin);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("to_bytes", TORCH_BOX(&to_bytes)); }

}  // namespace
}  // namespace setr_fast
