// Layer norm straight to bytes: what a product of bytes behind a norm is given (ops/layer_norm_bytes.py says in which
// order is summed; every step is rounded to float32, and none contracted, so that all variants give the same bytes).
//
// Work is split along rows, which stay in the first-level cache for their three passes. Bound by memory: 4 bytes read
// for one written.
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

constexpr int64_t kGrain = 1 << 14;  // values that pay for waking a thread
constexpr int64_t kLanes = 32;       // partial sums: part of what is computed

struct Rows {
  const float *x, *weight, *bias;
  uint8_t* out;
  int64_t width;
  float eps, inverse, zero, most;
};

inline float folded(const float* lanes) {
  float sum = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

SETR_FAST_VARIANTS void round_rows(const Rows& rows, int64_t begin, int64_t end) {
  const int64_t width = rows.width, whole = width / kLanes * kLanes;
  // Copies: a byte that is written might otherwise be part of what is read.
  const float* __restrict weight = rows.weight, * __restrict bias = rows.bias;
  const float inverse = rows.inverse, zero = rows.zero, most = rows.most;
  for (int64_t row = begin; row < end; ++row) {
    const float* __restrict x = rows.x + row * width;
    uint8_t* __restrict out = rows.out + row * width;
    float lanes[kLanes] = {}, squares[kLanes] = {};
    for (int64_t i = 0; i < whole; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane];
    }
    for (int64_t i = whole; i < width; ++i) lanes[i - whole] += x[i];
    const float mean = folded(lanes) / static_cast<float>(width);
    for (int64_t i = 0; i < whole; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float away = x[i + lane] - mean;
        squares[lane] += away * away;
      }
    }
    for (int64_t i = whole; i < width; ++i) squares[i - whole] += (x[i] - mean) * (x[i] - mean);
    const float rstd = 1.0f / std::sqrt(folded(squares) / static_cast<float>(width) + rows.eps);
    for (int64_t i = 0; i < width; ++i) {
      const float normed = (x[i] - mean) * rstd * weight[i] + bias[i];
      // In this order a NaN becomes 0: the comparison fails.
      float value = std::nearbyintf(normed * inverse) + zero;
      value = value > 0.0f ? value : 0.0f;
      out[i] = static_cast<uint8_t>(static_cast<int32_t>(value < most ? value : most));
    }
  }
}

Tensor layer_norm_bytes(const Tensor x, const Tensor weight, const Tensor bias, double eps, double scale, int64_t zero,
                        int64_t levels) {
  check(x.dim() >= 1 && x.scalar_type() == ScalarType::Float, "layer_norm_bytes: x must be float32 [..., D]");
  const int64_t width = x.size(x.dim() - 1);
  check(weight.numel() == width && bias.numel() == width, "layer_norm_bytes: weight and bias must be [", width, "]");
  check(weight.scalar_type() == ScalarType::Float && bias.scalar_type() == ScalarType::Float,
        "layer_norm_bytes: weight and bias must be float32");
  const Tensor values = torch::stable::contiguous(x), gain = torch::stable::contiguous(weight);
  const Tensor shift = torch::stable::contiguous(bias);
  std::vector<int64_t> shape;
  for (int64_t dim = 0; dim < x.dim(); ++dim) shape.push_back(x.size(dim));
  Tensor out = torch::stable::new_empty(values, shape, ScalarType::Byte);
  const Rows rows{static_cast<const float*>(values.const_data_ptr()),
                  static_cast<const float*>(gain.const_data_ptr()),
                  static_cast<const float*>(shift.const_data_ptr()),
                  static_cast<uint8_t*>(out.mutable_data_ptr()),
                  width,
                  static_cast<float>(eps),
                  static_cast<float>(1.0 / scale),
                  static_cast<float>(zero),
                  static_cast<float>(levels)};
  torch::stable::parallel_for(0, width ? x.numel() / width : 0, kGrain / (width + 1) + 1,
                              [&](int64_t begin, int64_t end) { round_rows(rows, begin, end); });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("layer_norm_bytes", TORCH_BOX(&layer_norm_bytes)); }

}  // namespace
}  // namespace setr_fast
