// relu(conv(bilinear(x))) without the upsampled map: products at the small size, interpolation of the products.
//
// Work is split over (picture, strip of output rows, 16 output channels). A task sweeps the rows of the small map: per
// row and per row of taps a register-tiled product gives the taps' maps for these 16 channels (24 kB, first-level
// cache), which are interpolated along x at once; the last few such rows stay in a ring (second-level cache), from
// which output rows are interpolated along y, given bias and ReLU, and written once. No tap map reaches memory. Bound
// by the products (FMA units): 9 * C * O per small pixel. Figures: docs/design/0005-upsample-conv.md.
#include "upsample_conv.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

namespace setr_fast {
namespace upsample_conv {

constexpr int64_t kBlock = 128;     // input channels at a time: their weights (24 kB) and pixels stay in 48 kB
constexpr int64_t kLeastRows = 16;  // of the small map in a strip: two or three of them are computed twice
constexpr int64_t kMostStrips = 16;

template <class T>
struct Job {
  Sizes sizes;
  const T* x;            // [B, h, w, C]
  const float* packed;   // [slice][tap row][C][taps in a row][16]
  const float* bias;     // [slices * 16]
  T* y;                  // [B, H, W, O]
  const Reach* rows;     // [H * kernel]
  const Reach* columns;  // [W * kernel]
  int64_t ring;          // rows of the small map that some output row needs together
  int64_t strips;
  bool relu;
};

// z[pixel][tap][16] (+)= x[pixel][0..channels) * weights[channel][tap][16] for `Pixels` pixels. On the way it asks for
// the same place of the next row (null: none), a line per pixel at a time: without that a row's first use waits.
template <int Pixels, int Taps, class T>
inline __attribute__((always_inline)) void tile(const float* x, int64_t stride, const float* weights, int64_t channels,
                                                bool first, const T* ahead, float* z) {
  Lanes sum[Pixels][Taps];
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 3
    for (int t = 0; t < Taps; ++t) {
      sum[p][t] = first ? Lanes{} : *reinterpret_cast<const Lanes*>(z + (p * Taps + t) * kLanes);
    }
  }
  for (int64_t line = 0; line < channels; line += kLanes) {
    if (ahead) {
#pragma GCC unroll 8
      for (int p = 0; p < Pixels; ++p) __builtin_prefetch(ahead + p * stride + line, 0, 2);
    }
    const int64_t end = std::min(channels, line + kLanes);
    for (int64_t c = line; c < end; ++c) {
      Lanes w[Taps];
#pragma GCC unroll 3
      for (int t = 0; t < Taps; ++t) w[t] = *reinterpret_cast<const Lanes*>(weights + (c * Taps + t) * kLanes);
#pragma GCC unroll 8
      for (int p = 0; p < Pixels; ++p) {
        const float value = x[p * stride + c];
#pragma GCC unroll 3
        for (int t = 0; t < Taps; ++t) sum[p][t] += value * w[t];
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 3
    for (int t = 0; t < Taps; ++t) *reinterpret_cast<Lanes*>(z + (p * Taps + t) * kLanes) = sum[p][t];
  }
}

template <int Pixels, int Taps, class T>
inline __attribute__((always_inline)) void products(const float* x, int64_t pixels, int64_t channels,
                                                    const float* weights, const T* ahead, float* z) {
  for (int64_t c = 0; c < channels; c += kBlock) {
    const int64_t count = std::min(kBlock, channels - c);
    const float* block = weights + c * Taps * kLanes;
    int64_t p = 0;
    for (; p + Pixels <= pixels; p += Pixels) {
      tile<Pixels, Taps>(x + p * channels + c, channels, block, count, c == 0, ahead ? ahead + p * channels + c : ahead,
                         z + p * Taps * kLanes);
    }
    if constexpr (Pixels > 2) {
      for (; p + 2 <= pixels; p += 2) {
        tile<2, Taps, T>(x + p * channels + c, channels, block, count, c == 0, nullptr, z + p * Taps * kLanes);
      }
    }
    for (; p < pixels; ++p) {
      tile<1, Taps, T>(x + p * channels + c, channels, block, count, c == 0, nullptr, z + p * Taps * kLanes);
    }
  }
}

inline __attribute__((always_inline)) const float* wide_row(const float* row, int64_t, float*) { return row; }
inline __attribute__((always_inline)) const float* wide_row(const uint16_t* row, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(row[i]);
  return to;
}

// One row of taps' maps, interpolated along x: line[X][16].
template <int Taps>
inline __attribute__((always_inline)) void across(const float* z, const Reach* columns, int64_t W, float* line) {
  for (int64_t X = 0; X < W; ++X) {
    Lanes sum{};
#pragma GCC unroll 3
    for (int t = 0; t < Taps; ++t) {
      const Reach& reach = columns[X * Taps + t];
      sum += reach.low_share * *reinterpret_cast<const Lanes*>(z + (reach.low * Taps + t) * kLanes);
      sum += reach.high_share * *reinterpret_cast<const Lanes*>(z + (reach.high * Taps + t) * kLanes);
    }
    *reinterpret_cast<Lanes*>(line + X * kLanes) = sum;
  }
}

// One output row of 16 channels from the lines of the ring.
template <int Taps, class T>
inline __attribute__((always_inline)) void down(const Job<T>& job, const float* ring, int64_t Y, int64_t slice, T* to) {
  const Sizes& s = job.sizes;
  const int64_t line = s.W * kLanes, count = std::min(kLanes, s.outputs - slice * kLanes);
  const Lanes bias = *reinterpret_cast<const Lanes*>(job.bias + slice * kLanes);
  const float *low[Taps], *high[Taps];
  float low_share[Taps], high_share[Taps];
#pragma GCC unroll 3
  for (int t = 0; t < Taps; ++t) {
    const Reach& reach = job.rows[Y * Taps + t];
    low[t] = ring + (reach.low % job.ring * Taps + t) * line;
    high[t] = ring + (reach.high % job.ring * Taps + t) * line;
    low_share[t] = reach.low_share;
    high_share[t] = reach.high_share;
  }
  for (int64_t X = 0; X < s.W; ++X) {
    Lanes sum = bias;
#pragma GCC unroll 3
    for (int t = 0; t < Taps; ++t) {
      sum += low_share[t] * *reinterpret_cast<const Lanes*>(low[t] + X * kLanes);
      sum += high_share[t] * *reinterpret_cast<const Lanes*>(high[t] + X * kLanes);
    }
    if (job.relu) sum = sum < 0.0f ? Lanes{} : sum;  // not a number stays what it is, as in torch
    T* out = to + X * s.outputs;
    if (count == kLanes) {
      store_lanes(sum, out);
    } else {
      for (int64_t o = 0; o < count; ++o) narrow(sum[o], out + o);
    }
  }
}

// Tasks [begin, end) of pictures x strips x slices.
template <int Pixels, int Taps, class T>
inline __attribute__((always_inline)) void sweep(const Job<T>& job, int64_t begin, int64_t end) {
  const Sizes& s = job.sizes;
  const auto z = scratch(s.w * Taps * kLanes);
  const auto ring = scratch(job.ring * Taps * s.W * kLanes);
  const auto wide = scratch(sizeof(T) == sizeof(float) ? 0 : s.w * s.channels);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t slice = task % s.slices(), strip = task / s.slices() % job.strips;
    const int64_t picture = task / s.slices() / job.strips;
    const float* weights = job.packed + slice * Taps * s.channels * Taps * kLanes;
    const int64_t last = s.H * (strip + 1) / job.strips;
    int64_t ready = 0;  // rows of the small map in front of this one are in the ring, or needed no more
    for (int64_t Y = s.H * strip / job.strips; Y < last; ++Y) {
      const Reach* reach = job.rows + Y * Taps;
      ready = std::max(ready, reach[0].low);
      for (; ready <= reach[Taps - 1].high; ++ready) {
        const T* narrow_row = job.x + (picture * s.h + ready) * s.w * s.channels;
        const float* row = wide_row(narrow_row, s.w * s.channels, wide.get());
        for (int t = 0; t < Taps; ++t) {
          const T* ahead = t == Taps - 1 && ready + 1 < s.h ? narrow_row + s.w * s.channels : nullptr;
          products<Pixels, Taps>(row, s.w, s.channels, weights + t * s.channels * Taps * kLanes, ahead, z.get());
          across<Taps>(z.get(), job.columns, s.W, ring.get() + (ready % job.ring * Taps + t) * s.W * kLanes);
        }
      }
      down<Taps>(job, ring.get(), Y, slice, job.y + (picture * s.H + Y) * s.W * s.outputs + slice * kLanes);
    }
  }
}

// Pixels of a register tile: 8 x 3 vectors of 512 bits, 2 x 3 pairs of 256 bits, 1 x 3 quadruples of 128 bits.
template <int Taps, class T>
void sweep_baseline(const Job<T>& job, int64_t begin, int64_t end) {
  sweep<1, Taps>(job, begin, end);
}
#if SETR_FAST_TARGETS
template <int Taps, class T>
SETR_FAST_AVX512 void sweep_avx512(const Job<T>& job, int64_t begin, int64_t end) {
  sweep<8, Taps>(job, begin, end);
}
template <int Taps, class T>
SETR_FAST_AVX2 void sweep_avx2(const Job<T>& job, int64_t begin, int64_t end) {
  sweep<2, Taps>(job, begin, end);
}
#endif

template <int Taps, class T>
auto best_sweep() {
#if SETR_FAST_TARGETS
  if (width() == 512) return &sweep_avx512<Taps, T>;
  if (width() == 256) return &sweep_avx2<Taps, T>;
#endif
  return &sweep_baseline<Taps, T>;
}

// [O, C, k, k] -> [slice][tap row][C][taps in a row][16], zeros for channels past the last.
template <class T>
void pack(const T* weight, const Sizes& s, float* packed) {
  const int64_t slab = s.taps() * s.channels * kLanes;
  torch::stable::parallel_for(0, s.slices(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      float* to = packed + slice * slab;
      const int64_t count = std::min(kLanes, s.outputs - slice * kLanes);
      if (count < kLanes) std::fill(to, to + slab, 0.0f);
      for (int64_t lane = 0; lane < count; ++lane) {
        const T* from = weight + (slice * kLanes + lane) * s.channels * s.taps();
        for (int64_t c = 0; c < s.channels; ++c) {
          for (int64_t t = 0; t < s.taps(); ++t) {
            const int64_t place = (t / s.kernel * s.channels + c) * s.kernel + t % s.kernel;
            to[place * kLanes + lane] = widen(from[c * s.taps() + t]);
          }
        }
      }
    }
  });
}

// Strips that give every thread nearly the same to do, and never more than a few rows twice.
int64_t strips_for(const Sizes& s) {
  const int64_t threads = torch::stable::get_num_threads(), whole = std::max<int64_t>(1, s.batch * s.slices());
  int64_t best = 1;
  double least = 1e30;
  for (int64_t strips = 1; strips <= std::clamp<int64_t>(s.h / kLeastRows, 1, kMostStrips); ++strips) {
    const int64_t rounds = (whole * strips + threads - 1) / threads;
    const double cost = static_cast<double>(rounds) * (static_cast<double>(s.h) / strips + (strips > 1 ? 2 : 0));
    if (cost < least * 0.97) {
      least = cost;
      best = strips;
    }
  }
  return best;
}

template <class T>
void run(const Sizes& s, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool relu,
         Tensor& y) {
  const auto packed = scratch(s.slices() * kLanes * s.channels * s.taps());
  pack(static_cast<const T*>(weight.const_data_ptr()), s, packed.get());
  const auto shifts = scratch(s.slices() * kLanes);
  std::fill(shifts.get(), shifts.get() + s.slices() * kLanes, 0.0f);
  if (bias) {
    const T* from = static_cast<const T*>(bias->const_data_ptr());
    for (int64_t o = 0; o < s.outputs; ++o) shifts[o] = widen(from[o]);
  }
  const auto rows = reaches(s.h, s.H, s.kernel, s.align_corners);
  const auto columns = reaches(s.w, s.W, s.kernel, s.align_corners);
  int64_t ring = 1;
  for (int64_t Y = 0; Y < s.H; ++Y) {
    ring = std::max(ring, rows[(Y + 1) * s.kernel - 1].high - rows[Y * s.kernel].low + 1);
  }
  const Job<T> job{s,
                   static_cast<const T*>(x.const_data_ptr()),
                   packed.get(),
                   shifts.get(),
                   static_cast<T*>(y.mutable_data_ptr()),
                   rows.data(),
                   columns.data(),
                   ring,
                   strips_for(s),
                   relu};
  const auto sweep_tasks = s.kernel == 3 ? best_sweep<3, T>() : best_sweep<1, T>();
  torch::stable::parallel_for(0, s.batch * job.strips * s.slices(), 1,
                              [&](int64_t begin, int64_t end) { sweep_tasks(job, begin, end); });
}

Sizes checked_sizes(const char* where, const Tensor& x, const Tensor& weight, int64_t H, int64_t W,
                    bool align_corners) {
  check(x.dim() == 4 && weight.dim() == 4, where, ": x and weight must have four dimensions, got ", x.dim(), " and ",
        weight.dim());
  const Sizes s{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), weight.size(2), H, W, align_corners};
  check(weight.size(1) == s.channels && weight.size(3) == s.kernel && (s.kernel == 1 || s.kernel == 3), where,
        ": weight must be [O, ", s.channels, ", k, k] with k 1 or 3, got [", weight.size(0), ", ", weight.size(1), ", ",
        weight.size(2), ", ", weight.size(3), "]");
  check(s.h >= 1 && s.w >= 1 && H >= 1 && W >= 1, where, ": sizes must be positive, got ", pair_text(s.h, s.w), " to ",
        pair_text(H, W));
  check(weight.scalar_type() == x.scalar_type(), where, ": weight must have the dtype of x");
  return s;
}

}  // namespace upsample_conv

namespace {

using torch::stable::Tensor;

Tensor upsample_conv_forward(const Tensor x, const Tensor weight, const std::optional<Tensor> bias, int64_t height,
                             int64_t width, bool align_corners, bool relu) {
  namespace uc = upsample_conv;
  const auto s = uc::checked_sizes("upsample_conv", x, weight, height, width, align_corners);
  check(!bias || (bias->numel() == s.outputs && bias->scalar_type() == x.scalar_type()),
        "upsample_conv: bias must be [", s.outputs, "] of the dtype of x");
  Tensor y = torch::stable::empty({s.batch, s.outputs, height, width}, x.scalar_type(), std::nullopt, std::nullopt,
                                  std::nullopt, uc::MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return y;
  const Tensor laid = torch::stable::contiguous(x, uc::MemoryFormat::ChannelsLast);
  const Tensor packed = torch::stable::contiguous(weight);
  std::optional<Tensor> shifts;
  if (bias) shifts = torch::stable::contiguous(*bias);
  uc::with_storage(x, "upsample_conv", [&](auto t) { uc::run<decltype(t)>(s, laid, packed, shifts, relu, y); });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("upsample_conv", TORCH_BOX(&upsample_conv_forward)); }

}  // namespace
}  // namespace setr_fast
