// Upsampled cross entropy by cells: all pixels between four neighbouring low-resolution pixels mix the same four
// vectors of logits. Classes lie side by side, 16 to a vector, padded with scores whose exponential is zero.
//
// Bound by arithmetic: about 20 instructions per pixel and 16 classes. Design:
// docs/design/0007-upsample-cross-entropy.md.
#include "upsample_cross_entropy_band.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#define SETR_FAST_INLINE inline __attribute__((always_inline))

namespace setr_fast::cross_entropy {
namespace {

namespace baseline {
#include "upsample_cross_entropy_pixels.h"
#include "upsample_cross_entropy_sums.h"
}  // namespace baseline

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SETR_FAST_X86 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "upsample_cross_entropy_pixels.h"
#include "upsample_cross_entropy_sums.h"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace avx512 {
#include "upsample_cross_entropy_pixels.h"
#include "upsample_cross_entropy_sums.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

struct Kernels {
  decltype(&baseline::to_scores) to_scores;
  decltype(&baseline::work_rows) work_rows, sum_rows, pull_rows;
};

Kernels choose() {
#if defined(SETR_FAST_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return {avx512::to_scores, avx512::work_rows, avx512::sum_rows, avx512::pull_rows};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {avx2::to_scores, avx2::work_rows, avx2::sum_rows, avx2::pull_rows};
#endif
  return {baseline::to_scores, baseline::work_rows, baseline::sum_rows, baseline::pull_rows};
}

const Kernels kernels = choose();

}  // namespace

Columns columns_of(const Problem& problem) {
  Columns columns;
  for (int64_t x = 0; x < problem.width; ++x) {
    const auto mix = mix_at(problem.columns, x);
    columns.low.push_back(mix.low);
    columns.high.push_back(mix.high);
    columns.weight.push_back(static_cast<float>(mix.high_weight));
  }
  return columns;
}

Workspace::Workspace(const Problem& p)
    : scores{Floats(p.row_floats()), Floats(p.row_floats())},
      score_sums{Floats(p.low_width), Floats(p.low_width)},
      score_rows{-1, -1},
      wide{false, false},
      gradients{Floats(p.with_gradient ? p.row_floats() : 0), Floats(p.with_gradient ? p.row_floats() : 0)},
      powers(kPixelRows * p.padded()),
      top(p.padded()),
      step(p.padded()),
      labels(static_cast<size_t>(kPixelRows * p.width)) {}

BandResult work_band(const Problem& p, const Columns& columns, Workspace& space, int64_t picture, int64_t begin,
                     int64_t end, float* first, float* beyond) {
  BandResult result;
  if (p.sums_classes()) result.sums.resize(static_cast<size_t>(2 * p.padded()));
  const auto work = !p.sums_classes() ? kernels.work_rows : (p.with_gradient ? kernels.pull_rows : kernels.sum_rows);
  const size_t bytes = static_cast<size_t>(p.row_floats()) * sizeof(float);
  space.score_rows[0] = space.score_rows[1] = -1;
  int low = 0;  // which half of the workspace holds the low row; the other holds the one after it
  const auto need = [&](int half, int64_t row) {
    if (space.score_rows[half] == row) return;
    read_row(p, picture, row, space.scores[half].get());
    space.wide[half] = kernels.to_scores(p, space.scores[half].get(), space.score_sums[half].get());
    space.score_rows[half] = row;
  };
  if (p.with_gradient) std::memset(space.gradients[low].get(), 0, bytes);
  for (int64_t row = begin; row < end; ++row, low = 1 - low) {
    const int high = row + 1 < p.low_height ? 1 - low : low;
    if (p.with_gradient) std::memset(space.gradients[1 - low].get(), 0, bytes);
    const int64_t last = std::min(first_from(p.rows, row + 1), p.height);
    for (int64_t y = first_from(p.rows, row); y < last; y += kPixelRows) {
      const int64_t stop = std::min(y + kPixelRows, last);
      need(low, row);
      if (high != low) need(high, row + 1);
      float weights[kPixelRows];
      for (int64_t at = y; at < stop; ++at) weights[at - y] = static_cast<float>(mix_at(p.rows, at).high_weight);
      read_labels(p, (picture * p.height + y) * p.width, (stop - y) * p.width, space.labels.data());
      work(p, columns, space, picture, y, stop, weights, low, high, result);
    }
    if (!p.with_gradient) continue;
    if (row == begin && begin > 0) {
      std::memcpy(first, space.gradients[low].get(), bytes);
    } else {
      write_row(p, picture, row, space.gradients[low].get());
    }
  }
  if (p.with_gradient && end < p.low_height) std::memcpy(beyond, space.gradients[low].get(), bytes);
  return result;
}

}  // namespace setr_fast::cross_entropy
