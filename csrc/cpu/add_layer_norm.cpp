// A residual stream plus a branch, and the layer norm of the sum.
//
// Work is split along rows. A row is summed and stored, then its mean and its spread are taken in two more passes
// while it lies in the first-level cache, so memory is read and written once. Bound by memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../variants.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;  // values that pay for waking a thread
constexpr int64_t kLanes = 32;       // partial sums, so that a row is added up in vectors whatever their width

struct Rows {
  const float* x;
  const void* branch;
  const float* weight;
  const float* bias;
  float* total;
  void* normed;
  int64_t width;
  float eps;
};

inline float number(float value) { return value; }
inline float number(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline void store(float* to, float value) { *to = value; }
inline void store(uint16_t* to, float value) {  // round to nearest even; a NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *to = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : even);
}

inline float folded(const float* lanes) {
  float sum = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

template <class T>
inline void one_row(const float* __restrict x, const T* __restrict branch, const float* __restrict weight,
                    const float* __restrict bias, float* __restrict total, T* __restrict normed, int64_t width,
                    float eps) {
  float lanes[kLanes] = {};
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t i = 0; i < width; ++i) total[i] = x[i] + number(branch[i]);
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += total[i + lane];
  }
  for (int64_t i = whole; i < width; ++i) lanes[i - whole] += total[i];
  const float mean = folded(lanes) / static_cast<float>(width);
  std::memset(lanes, 0, sizeof(lanes));
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float away = total[i + lane] - mean;
      lanes[lane] += away * away;
    }
  }
  for (int64_t i = whole; i < width; ++i) lanes[i - whole] += (total[i] - mean) * (total[i] - mean);
  const float rstd = 1.0f / std::sqrt(folded(lanes) / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; ++i) store(normed + i, (total[i] - mean) * rstd * weight[i] + bias[i]);
}

template <class T>
inline void share(const Rows& rows, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * rows.width;
    one_row<T>(rows.x + at, static_cast<const T*>(rows.branch) + at, rows.weight, rows.bias, rows.total + at,
               static_cast<T*>(rows.normed) + at, rows.width, rows.eps);
  }
}

SETR_FAST_VARIANTS void rows_float(const Rows& rows, int64_t begin, int64_t end) { share<float>(rows, begin, end); }

SETR_FAST_VARIANTS void rows_bfloat16(const Rows& rows, int64_t begin, int64_t end) {
  share<uint16_t>(rows, begin, end);
}

std::tuple<Tensor, Tensor> add_layer_norm(const Tensor x, const Tensor branch, const Tensor weight, const Tensor bias,
                                          double eps) {
  check(x.dim() >= 1 && x.numel() == branch.numel(), "add_layer_norm: branch must be as large as x");
  const int64_t width = x.size(x.dim() - 1);
  check(weight.numel() == width && bias.numel() == width, "add_layer_norm: weight and bias must be [", width, "]");
  const bool half = branch.scalar_type() == ScalarType::BFloat16;
  check(half || branch.scalar_type() == ScalarType::Float, "add_layer_norm: branch must be float32 or bfloat16");
  const Tensor stream = torch::stable::contiguous(x), added = torch::stable::contiguous(branch);
  const Tensor gain = torch::stable::contiguous(weight), shift = torch::stable::contiguous(bias);
  std::vector<int64_t> shape;
  for (int64_t dim = 0; dim < x.dim(); ++dim) shape.push_back(x.size(dim));
  Tensor total = torch::stable::new_empty(stream, shape, ScalarType::Float);
  Tensor normed = torch::stable::new_empty(added, shape, branch.scalar_type());
  const Rows rows{static_cast<const float*>(stream.const_data_ptr()),
                  added.const_data_ptr(),
                  static_cast<const float*>(gain.const_data_ptr()),
                  static_cast<const float*>(shift.const_data_ptr()),
                  static_cast<float*>(total.mutable_data_ptr()),
                  normed.mutable_data_ptr(),
                  width,
                  static_cast<float>(eps)};
  const int64_t count = width ? x.numel() / width : 0;
  torch::stable::parallel_for(0, count, kGrain / (width + 1) + 1, [&](int64_t begin, int64_t end) {
    half ? rows_bfloat16(rows, begin, end) : rows_float(rows, begin, end);
  });
  return {total, normed};
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm)); }

}  // namespace
}  // namespace setr_fast
