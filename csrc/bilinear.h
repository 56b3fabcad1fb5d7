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

// Index holds pixels: int32_t for the threads of a GPU, which have 64 bits in pairs of registers only.
template <class Real, class Index = int64_t>
struct Axis {
  using Pixel = Index;
  Index in, out;
  Real ratio;  // source pixels per output pixel
  bool align_corners;
};

template <class Real>
SETR_FAST_HD Axis<Real> make_axis(int64_t in, int64_t out, bool align_corners) {
  const Real ratio = align_corners ? (out > 1 ? static_cast<Real>(in - 1) / static_cast<Real>(out - 1) : Real(0))
                                   : static_cast<Real>(in) / static_cast<Real>(out);
  return {in, out, ratio, align_corners};
}

// The same axis in 32 bits; its sizes must fit.
template <class Real>
SETR_FAST_HD Axis<Real, int32_t> narrowed(const Axis<Real>& axis) {
  return {static_cast<int32_t>(axis.in), static_cast<int32_t>(axis.out), axis.ratio, axis.align_corners};
}

template <class Real, class Index = int64_t>
struct Mix {
  Index low, high;   // source pixels
  Real high_weight;  // the share of the second, in [0, 1]
};

// Where output pixel `at` lies among the source pixels, 0 <= at < out; past the last one it is beyond in - 1.
template <class Real, class Index>
SETR_FAST_HD Real position_at(const Axis<Real, Index>& axis, typename Axis<Real, Index>::Pixel at) {
  const Real position = axis.align_corners ? axis.ratio * static_cast<Real>(at)
                                           : axis.ratio * (static_cast<Real>(at) + Real(0.5)) - Real(0.5);
  return position < Real(0) ? Real(0) : position;
}

// The sources of output pixel `at`, 0 <= at < out.
template <class Real, class Index>
SETR_FAST_HD Mix<Real, Index> mix_at(const Axis<Real, Index>& axis, typename Axis<Real, Index>::Pixel at) {
  const Real position = position_at(axis, at);
  Index low = static_cast<Index>(position);
  if (low > axis.in - 1) low = axis.in - 1;
  Real weight = position - static_cast<Real>(low);
  if (weight > Real(1)) weight = Real(1);
  return {low, low < axis.in - 1 ? low + 1 : low, weight};
}

template <class Index>
struct Span {
  Index begin, end;
};

// The first output pixel whose first source is `source` or later (out if there is none): low grows with `at`.
template <class Real, class Index>
SETR_FAST_HD Index first_from(const Axis<Real, Index>& axis, typename Axis<Real, Index>::Pixel source) {
  if (source <= 0) return 0;
  if (source > axis.in - 1) return axis.out;
  if (axis.ratio <= Real(0)) return axis.out;
  const Real exact = axis.align_corners ? static_cast<Real>(source) / axis.ratio
                                        : (static_cast<Real>(source) + Real(0.5)) / axis.ratio - Real(0.5);
  Index at = static_cast<Index>(exact) - 1;  // near the answer; the loops below end the doubt of rounding
  if (at < 0) at = 0;
  if (at > axis.out) at = axis.out;
  while (at > 0 && mix_at(axis, at - 1).low >= source) --at;
  while (at < axis.out && mix_at(axis, at).low < source) ++at;
  return at;
}

// The output pixels that `source` takes part in, for a backward that gathers: as first source or as second.
template <class Real, class Index>
SETR_FAST_HD Span<Index> targets_of(const Axis<Real, Index>& axis, typename Axis<Real, Index>::Pixel source) {
  return {first_from(axis, source - 1), first_from(axis, source + 1)};
}

}  // namespace setr_fast
