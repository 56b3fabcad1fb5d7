// Where an output pixel of a bilinear resize looks in its source, along one axis, on the CPU and on CUDA alike.
//
// The rule of torch.nn.functional.interpolate(size=..., mode="bilinear", antialias=False): positions are worked out in
// Real (float for float and 16-bit data, double for double), the ratio rounded once. Both source pixels are always
// inside the picture; past a border the two are the same pixel, or the second has no weight.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SETR_FAST_HD __host__ __device__ __forceinline__
#else
#define SETR_FAST_HD inline
#endif

namespace setr_fast {

template <class Real>
struct Axis {
  int64_t in, out;
  Real ratio;  // source pixels per output pixel
  bool align_corners;
};

template <class Real>
SETR_FAST_HD Axis<Real> make_axis(int64_t in, int64_t out, bool align_corners) {
  const Real ratio = align_corners ? (out > 1 ? static_cast<Real>(in - 1) / static_cast<Real>(out - 1) : Real(0))
                                   : static_cast<Real>(in) / static_cast<Real>(out);
  return {in, out, ratio, align_corners};
}

template <class Real>
struct Mix {
  int64_t low, high;  // source pixels
  Real high_weight;   // the share of the second, in [0, 1]
};

// The sources of output pixel `at`, 0 <= at < out.
template <class Real>
SETR_FAST_HD Mix<Real> mix_at(const Axis<Real>& axis, int64_t at) {
  Real position = axis.align_corners ? axis.ratio * static_cast<Real>(at)
                                     : axis.ratio * (static_cast<Real>(at) + Real(0.5)) - Real(0.5);
  if (position < Real(0)) position = Real(0);
  int64_t low = static_cast<int64_t>(position);
  if (low > axis.in - 1) low = axis.in - 1;
  Real weight = position - static_cast<Real>(low);
  if (weight > Real(1)) weight = Real(1);
  return {low, low < axis.in - 1 ? low + 1 : low, weight};
}

struct Span {
  int64_t begin, end;
};

// The first output pixel whose first source is `source` or later (out if there is none): low grows with `at`.
template <class Real>
SETR_FAST_HD int64_t first_from(const Axis<Real>& axis, int64_t source) {
  if (source <= 0) return 0;
  if (source > axis.in - 1) return axis.out;
  if (axis.ratio <= Real(0)) return axis.out;
  const Real exact = axis.align_corners ? static_cast<Real>(source) / axis.ratio
                                        : (static_cast<Real>(source) + Real(0.5)) / axis.ratio - Real(0.5);
  int64_t at = static_cast<int64_t>(exact) - 1;  // near the answer; the loops below end the doubt of rounding
  if (at < 0) at = 0;
  if (at > axis.out) at = axis.out;
  while (at > 0 && mix_at(axis, at - 1).low >= source) --at;
  while (at < axis.out && mix_at(axis, at).low < source) ++at;
  return at;
}

// The output pixels that `source` takes part in, for a backward that gathers: as first source or as second.
template <class Real>
SETR_FAST_HD Span targets_of(const Axis<Real>& axis, int64_t source) {
  return {first_from(axis, source - 1), first_from(axis, source + 1)};
}

}  // namespace setr_fast
