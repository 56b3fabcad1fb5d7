// See the header. Work per class and 16 pixels: a multiply-add per strip, a comparison and two selections.
#include "upsample_accumulate_loops.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SETR_FAST_X86 1
#endif
#define SETR_FAST_INLINE inline __attribute__((always_inline))

namespace setr_fast {
namespace {

typedef float F16 __attribute__((vector_size(64), aligned(64)));
typedef int32_t I16 __attribute__((vector_size(64), aligned(64)));
typedef float LooseF16 __attribute__((vector_size(64), aligned(4), may_alias));

// ---- spreading a row of small logits over the columns of a block ----------------------------------------------------

SETR_FAST_INLINE void put(const Spread& spread, F16& sum, int64_t classes, float* strip, bool& plain) {
  float* to = strip + spread.group * classes * kLanes;
  if (!spread.first) sum += *reinterpret_cast<const F16*>(to);
  *reinterpret_cast<F16*>(to) = sum;
  for (int lane = 0; lane < kLanes; ++lane) plain &= std::fabs(sum[lane]) < kLargest;
}

void spread_plain(const float* staged, const WindowSpread& window, int64_t taps, int64_t classes, float* strip,
                  bool& plain) {
  for (const Spread& spread : window.spreads) {
    float sum[kLanes];
    const float* from = staged + spread.base;
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] = spread.weight[lane] * from[spread.index[lane]];
    for (int64_t tap = 1; tap < taps; ++tap) {
      for (int lane = 0; lane < kLanes; ++lane) {
        sum[lane] += spread.weight[tap * kLanes + lane] * from[spread.index[lane] + tap];
      }
    }
    F16 packed;
    std::memcpy(&packed, sum, sizeof(packed));
    put(spread, packed, classes, strip, plain);
  }
}

#ifdef SETR_FAST_X86
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void spread_wide(const float* staged,
                                                                                        const WindowSpread& window,
                                                                                        int64_t taps, int64_t classes,
                                                                                        float* strip, bool& plain) {
  I16 beyond = {};
  for (const Spread& spread : window.spreads) {
    F16 sum = {};
    const auto* weight = reinterpret_cast<const F16*>(spread.weight);
    if (spread.narrow) {
      const F16 values = *reinterpret_cast<const LooseF16*>(staged + spread.base);
      I16 index;
      std::memcpy(&index, spread.index, sizeof(index));
      sum = weight[0] * __builtin_shuffle(values, index);
      for (int64_t tap = 1; tap < taps; ++tap) sum += weight[tap] * __builtin_shuffle(values, index + int32_t(tap));
    } else {
      const float* from = staged + spread.base;
      for (int64_t tap = 0; tap < taps; ++tap) {
        F16 values;
        for (int lane = 0; lane < kLanes; ++lane) values[lane] = from[spread.index[lane] + tap];
        sum += weight[tap] * values;
      }
    }
    float* to = strip + spread.group * classes * kLanes;
    if (!spread.first) sum += *reinterpret_cast<const F16*>(to);
    *reinterpret_cast<F16*>(to) = sum;
    const F16 size = sum < 0 ? -sum : sum;
    beyond |= size < kLargest ? I16{} : I16{} - 1;
  }
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= beyond[lane];
  plain &= any == 0;
}
#endif

// ---- sums of strips, their largest class, their softmax
// --------------------------------------------------------------

// Vectors of the width that a machine has: compilers take wider ones apart element by element.
template <int kWidth>
struct Vectors {
  static constexpr int kSteps = kLanes / kWidth;
  typedef float Real __attribute__((vector_size(kWidth * 4), aligned(kWidth * 4)));
  typedef int32_t Whole __attribute__((vector_size(kWidth * 4), aligned(kWidth * 4)));

  static SETR_FAST_INLINE const Real& at(const float* from) { return *reinterpret_cast<const Real*>(from); }
  static SETR_FAST_INLINE Real& at(float* to) { return *reinterpret_cast<Real*>(to); }
};

template <class V, int kRows, int kStrips>
SETR_FAST_INLINE void weigh(const float* const* strips, const float* weights, int64_t count, int64_t at,
                            typename V::Real* sums) {
  const int64_t strips_here = kStrips > 0 ? kStrips : count;
  const typename V::Real first = V::at(strips[0] + at);
  for (int row = 0; row < kRows; ++row) sums[row] = weights[row * strips_here] * first;
  for (int64_t strip = 1; strip < strips_here; ++strip) {
    const typename V::Real next = V::at(strips[strip] + at);
    for (int row = 0; row < kRows; ++row) sums[row] += weights[row * strips_here + strip] * next;
  }
}

template <class V, int kRows, int kStrips>
SETR_FAST_INLINE void argmax_rows(const float* const* strips, const float* weights, int64_t count, int64_t groups,
                                  int64_t classes, int32_t* out) {
  using Real = typename V::Real;
  using Whole = typename V::Whole;
  for (int64_t step = 0; step < groups * V::kSteps; ++step) {
    const int64_t column = step * (kLanes / V::kSteps);
    const int64_t base = column / kLanes * classes * kLanes + column % kLanes;
    Real best[kRows];
    Whole index[kRows] = {};
    weigh<V, kRows, kStrips>(strips, weights, count, base, best);
    for (int64_t k = 1; k < classes; ++k) {
      Real value[kRows];
      weigh<V, kRows, kStrips>(strips, weights, count, base + k * kLanes, value);
      const Whole here = Whole{} + static_cast<int32_t>(k);
      for (int row = 0; row < kRows; ++row) {
        const Whole more = value[row] > best[row];
        best[row] = more ? value[row] : best[row];
        index[row] = more ? here : index[row];
      }
    }
    for (int row = 0; row < kRows; ++row) *reinterpret_cast<Whole*>(out + row * kMostColumns + column) = index[row];
  }
}

template <class V, int kRows>
SETR_FAST_INLINE void argmax_any(const float* const* strips, const float* weights, int64_t count, int64_t groups,
                                 int64_t classes, int32_t* out) {
  if (count == 1) return argmax_rows<V, kRows, 1>(strips, weights, count, groups, classes, out);
  if (count == 2) return argmax_rows<V, kRows, 2>(strips, weights, count, groups, classes, out);
  if (count == 3) return argmax_rows<V, kRows, 3>(strips, weights, count, groups, classes, out);
  argmax_rows<V, kRows, 0>(strips, weights, count, groups, classes, out);
}

// The first largest class of each of `rows` (1, 2 or 4) output rows. Shapes: weights [rows, count], out [rows, block].
template <class V>
SETR_FAST_INLINE void argmax_block(int64_t rows, const float* const* strips, const float* weights, int64_t count,
                                   int64_t groups, int64_t classes, int32_t* out) {
  if (rows == 1) return argmax_any<V, 1>(strips, weights, count, groups, classes, out);
  if (rows == 2) return argmax_any<V, 2>(strips, weights, count, groups, classes, out);
  argmax_any<V, 4>(strips, weights, count, groups, classes, out);
}

// Raises e to the power of a value <= 0: 2^n times a polynomial, to about one unit in the last place (Cephes'
// coefficients).
template <class V>
SETR_FAST_INLINE void exponentiate(typename V::Real& value) {
  using Real = typename V::Real;
  using Whole = typename V::Whole;
  const Real x = value < -87.0f ? Real{} - 87.0f : value;
  const Real shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum's fraction is rounded away
  const Real whole = shifted - 12582912.0f;
  const Real rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Real sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * (rest * rest) + rest + 1.0f;
  const Whole power = (__builtin_convertvector(whole, Whole) + 127) << 23;
  Real scale;
  std::memcpy(&scale, &power, sizeof(scale));
  value = sum * scale;
}

// Adds one view's part to the scores of a vector of columns: its logits, or their softmax, times `share`.
template <class V, int kRows, int kStrips>
SETR_FAST_INLINE void add_view(const float* const* strips, const float* weights, int64_t count, int64_t at,
                               int64_t classes, float share, bool softmax, bool first, float* logits, float* scores) {
  using Real = typename V::Real;
  if (!softmax) {
    for (int64_t k = 0; k < classes; ++k) {
      Real value[kRows];
      weigh<V, kRows, kStrips>(strips, weights, count, at + k * kLanes, value);
      for (int row = 0; row < kRows; ++row) {
        Real& score = V::at(scores + (k * kRows + row) * kLanes);
        score = first ? value[row] * share : score + value[row] * share;
      }
    }
    return;
  }
  Real largest[kRows] = {}, total[kRows] = {};
  for (int64_t k = 0; k < classes; ++k) {
    Real value[kRows];
    weigh<V, kRows, kStrips>(strips, weights, count, at + k * kLanes, value);
    for (int row = 0; row < kRows; ++row) {
      V::at(logits + (k * kRows + row) * kLanes) = value[row];
      const Real before = k == 0 ? value[row] : largest[row];
      largest[row] = value[row] > before ? value[row] : before;
    }
  }
  for (int64_t k = 0; k < classes; ++k) {
    for (int row = 0; row < kRows; ++row) {
      Real value = V::at(logits + (k * kRows + row) * kLanes) - largest[row];
      exponentiate<V>(value);
      V::at(logits + (k * kRows + row) * kLanes) = value;
      total[row] += value;
    }
  }
  for (int row = 0; row < kRows; ++row) total[row] = share / total[row];
  for (int64_t k = 0; k < classes; ++k) {
    for (int row = 0; row < kRows; ++row) {
      Real& score = V::at(scores + (k * kRows + row) * kLanes);
      const Real part = V::at(logits + (k * kRows + row) * kLanes) * total[row];
      score = first ? part : score + part;
    }
  }
}

// Mean over the views for 16 columns and two rows: scores [class][row][16] and, where wanted, the largest class.
template <class V>
SETR_FAST_INLINE void score_group(const std::vector<ViewStrips>& views, int64_t group, int64_t classes, bool softmax,
                                  float* logits, float* scores, int32_t* best) {
  constexpr int kRows = kProbabilityRows;
  const float share = 1.0f / static_cast<float>(views.size());
  for (int64_t column = 0; column < kLanes; column += kLanes / V::kSteps) {
    const int64_t at = group * classes * kLanes + column;
    bool first = true;
    for (const ViewStrips& view : views) {
      const auto count = static_cast<int64_t>(view.strips.size());
      if (count == 2) {
        add_view<V, kRows, 2>(view.strips.data(), view.weights, count, at, classes, share, softmax, first,
                              logits + column, scores + column);
      } else {
        add_view<V, kRows, 0>(view.strips.data(), view.weights, count, at, classes, share, softmax, first,
                              logits + column, scores + column);
      }
      first = false;
    }
    for (int row = 0; best != nullptr && row < kRows; ++row) {
      typename V::Real most = V::at(scores + row * kLanes + column);
      typename V::Whole index = {};
      for (int64_t k = 1; k < classes; ++k) {
        const typename V::Real score = V::at(scores + (k * kRows + row) * kLanes + column);
        const typename V::Whole more = score > most;
        most = more ? score : most;
        index = more ? typename V::Whole{} + static_cast<int32_t>(k) : index;
      }
      *reinterpret_cast<typename V::Whole*>(best + row * kMostColumns + group * kLanes + column) = index;
    }
  }
}

#define SETR_FAST_KERNELS(name, target, width)                                                                  \
  target void argmax_##name(int64_t rows, const float* const* strips, const float* weights, int64_t count,      \
                            int64_t groups, int64_t classes, int32_t* out) {                                    \
    argmax_block<Vectors<width>>(rows, strips, weights, count, groups, classes, out);                           \
  }                                                                                                             \
  target void scores_##name(const std::vector<ViewStrips>& views, int64_t group, int64_t classes, bool softmax, \
                            float* logits, float* scores, int32_t* best) {                                      \
    score_group<Vectors<width>>(views, group, classes, softmax, logits, scores, best);                          \
  }

SETR_FAST_KERNELS(portable, , 4)
#ifdef SETR_FAST_X86
SETR_FAST_KERNELS(avx2, __attribute__((target("avx2,fma"))), 8)
SETR_FAST_KERNELS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), 16)
#endif

// By the features themselves: a clone for "arch=skylake-avx512" is taken on that very processor only.
MosaicKernels pick_kernels() {
#ifdef SETR_FAST_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
    return {argmax_avx512, scores_avx512, spread_wide};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {argmax_avx2, scores_avx2, spread_plain};
  }
#endif
  return {argmax_portable, scores_portable, spread_plain};
}

}  // namespace

const MosaicKernels& mosaic_kernels() {
  static const MosaicKernels picked = pick_kernels();
  return picked;
}

}  // namespace setr_fast
