// A task sweeps the rows of the small map: per row and per row of taps a register-tiled product gives the taps' maps
// for 16 channels (24 kB, first-level cache), which are interpolated along x at once; the last few such rows stay in a
// ring (second-level cache), from which output rows are interpolated along y, given bias and ReLU, and written once. No
// tap map reaches memory. Bound by the products (FMA units): 9 * C * O per small pixel.
#include "upsample_conv_sweep.h"

#include <algorithm>

namespace setr_fast::upsample_conv {
namespace {

constexpr int64_t kBlock = 128;  // input channels at a time: their weights (24 kB) and pixels stay in 48 kB
constexpr int64_t kAhead = 24;   // pixels whose memory is asked for before they are written

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
    __builtin_prefetch(out + kAhead * s.outputs, 1);  // pixels lie far apart: each write would wait for its line
    if (count == kLanes) {
      store_lanes(sum, out);
    } else {
      for (int64_t o = 0; o < count; ++o) narrow(sum[o], out + o);
    }
  }
}

template <int Pixels, int Taps, class T>
inline __attribute__((always_inline)) void sweep(const Job<T>& job, Part<T>& part) {
  const Sizes& s = job.sizes;
  const auto z = scratch(s.w * Taps * kLanes);
  const auto wide = scratch(sizeof(T) == sizeof(float) ? 0 : s.w * s.channels);
  const float* weights = job.packed + part.slice * Taps * s.channels * Taps * kLanes;
  for (int64_t Y = part.begin; Y < part.end; ++Y) {
    const Reach* reach = job.rows + Y * Taps;
    int64_t& ready = part.ready;
    ready = std::max(ready, reach[0].low);
    for (; ready <= reach[Taps - 1].high; ++ready) {
      const T* narrow_row = job.x + (part.picture * s.h + ready) * s.w * s.channels;
      const float* row = wide_row(narrow_row, s.w * s.channels, wide.get());
      for (int t = 0; t < Taps; ++t) {
        const T* ahead = t == Taps - 1 && ready + 1 < s.h ? narrow_row + s.w * s.channels : nullptr;
        products<Pixels, Taps>(row, s.w, s.channels, weights + t * s.channels * Taps * kLanes, ahead, z.get());
        across<Taps>(z.get(), job.columns, s.W, part.lines + (ready % job.ring * Taps + t) * s.W * kLanes);
      }
    }
    down<Taps>(job, part.lines, Y, part.slice, part.y + (Y - part.begin) * s.W * s.outputs + part.slice * kLanes);
  }
}

// Pixels of a register tile: 8 x 3 vectors of 512 bits, 2 x 3 pairs of 256 bits, 1 x 3 quadruples of 128 bits.
template <int Taps, class T>
void sweep_baseline(const Job<T>& job, Part<T>& part) {
  sweep<1, Taps>(job, part);
}
#if SETR_FAST_TARGETS
template <int Taps, class T>
SETR_FAST_AVX512 void sweep_avx512(const Job<T>& job, Part<T>& part) {
  sweep<8, Taps>(job, part);
}
template <int Taps, class T>
SETR_FAST_AVX2 void sweep_avx2(const Job<T>& job, Part<T>& part) {
  sweep<2, Taps>(job, part);
}
#endif

template <int Taps, class T>
Sweep<T> best_sweep_of() {
#if SETR_FAST_TARGETS
  if (width() == 512) return &sweep_avx512<Taps, T>;
  if (width() == 256) return &sweep_avx2<Taps, T>;
#endif
  return &sweep_baseline<Taps, T>;
}

}  // namespace

template <class T>
Sweep<T> best_sweep(int64_t kernel) {
  return kernel == 3 ? best_sweep_of<3, T>() : best_sweep_of<1, T>();
}
template Sweep<float> best_sweep(int64_t);
template Sweep<uint16_t> best_sweep(int64_t);

}  // namespace setr_fast::upsample_conv
