// Upsampling and convolution commuted: from tap maps at low resolution to the convolution's output, and back.
//
// z[p, t] = W_t x[p] is a matrix product at low resolution. Here is what one thread of a GPU does with it: eight
// channels at a time, sums in float32. No address depends on a value, nothing is accumulated between threads, so the
// result is the same in every run. The same bodies run on the CPU in the tests.
#pragma once

#include <cstdint>

#include "bilinear.h"

#if defined(__CUDACC__)
#define SETR_FAST_UNROLL _Pragma("unroll")
#else
#define SETR_FAST_UNROLL
#endif

namespace setr_fast {

constexpr int kLanes = 8;  // channels of a thread: 16 bytes of 16-bit values
constexpr int kRows = 16;  // output rows of a thread; the two mixed rows that it starts with are its neighbour's too

// z [pictures, rows.in, cols.in, side * side, padded], y [pictures, rows.out, cols.out, channels]; padded is channels
// rounded up to a multiple of kLanes.
struct TapShape {
  int64_t pictures;
  Axis<float> rows, cols;
  int64_t channels, padded;
};

struct Lanes {
  float of[kLanes];
};

// What a thread may address with 32 bits: a line of z, and the rows.
SETR_FAST_HD bool addressable(const TapShape& s, int side) {
  constexpr int64_t kMost = INT32_MAX;
  return s.rows.out < kMost && s.rows.in < kMost && s.cols.in * side * side * s.padded < kMost;
}

// Where the taps of one output column look in a line of z (values from its start), and how much they take.
template <int kSide>
struct Columns {
  int32_t low[kSide], high[kSide];
  float low_weight[kSide], high_weight[kSide];
};

// The low-resolution row `row` of tap row `dy`, mixed for one output column by all its taps.
template <int kSide, class Memory>
SETR_FAST_HD Lanes mixed_columns(const TapShape& s, const Memory& memory, const Columns<kSide>& columns,
                                 int64_t picture, int32_t row, int dy, int64_t channel) {
  Lanes sum{};
  const int64_t line = (picture * s.rows.in + row) * s.cols.in * (kSide * kSide) * s.padded + channel;
  SETR_FAST_UNROLL
  for (int dx = 0; dx < kSide; ++dx) {
    const int64_t tap = line + (dy * kSide + dx) * s.padded;
    const Lanes a = memory.load_z(tap + columns.low[dx]);
    const Lanes b = memory.load_z(tap + columns.high[dx]);
    SETR_FAST_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      sum.of[i] += columns.low_weight[dx] * a.of[i] + columns.high_weight[dx] * b.of[i];
    }
  }
  return sum;
}

SETR_FAST_HD int64_t strips_of(const TapShape& s) { return (s.rows.out + kRows - 1) / kRows; }

SETR_FAST_HD int64_t combine_threads(const TapShape& s) {
  return s.pictures * strips_of(s) * s.cols.out * (s.padded / kLanes);
}

// Thread `index`: eight channels of kRows output pixels of one column. It walks down and keeps, for each row of taps,
// the two mixed rows that it lies between, so that every row is mixed once.
// Memory: load_z(offset), start(channel) gives the bias, finish(pixel, channel, lanes) writes.
template <int kSide, class Memory>
SETR_FAST_HD void combine_strip(const TapShape& s, const Memory& memory, int64_t index) {
  const int64_t groups = s.padded / kLanes, strips = strips_of(s);
  const int64_t channel = index % groups * kLanes;
  const int64_t column = index / groups % s.cols.out;
  const int64_t strip = index / groups / s.cols.out;
  const int64_t picture = strip / strips;
  const int64_t begin = strip % strips * kRows;
  const int64_t end = begin + kRows < s.rows.out ? begin + kRows : s.rows.out;
  const Lanes bias = memory.start(channel);
  Columns<kSide> columns;
  SETR_FAST_UNROLL
  for (int dx = 0; dx < kSide; ++dx) {
    const int64_t at = column + dx - kSide / 2;
    const bool inside = at >= 0 && at < s.cols.out;
    const auto mix = mix_at(s.cols, inside ? at : column);
    columns.low[dx] = static_cast<int32_t>(mix.low * (kSide * kSide) * s.padded);
    columns.high[dx] = static_cast<int32_t>(mix.high * (kSide * kSide) * s.padded);
    columns.low_weight[dx] = inside ? 1.0f - mix.high_weight : 0.0f;  // a tap on the zero padding has no weight
    columns.high_weight[dx] = inside ? mix.high_weight : 0.0f;
  }
  Lanes above[kSide] = {}, below[kSide] = {};
  int32_t above_row[kSide], below_row[kSide];
  SETR_FAST_UNROLL
  for (int dy = 0; dy < kSide; ++dy) above_row[dy] = below_row[dy] = -1;
  for (int32_t row = static_cast<int32_t>(begin); row < end; ++row) {
    Lanes sum = bias;
    SETR_FAST_UNROLL
    for (int dy = 0; dy < kSide; ++dy) {
      const int32_t at = row + dy - kSide / 2;
      if (at < 0 || at >= s.rows.out) continue;
      const auto mix = mix_at(s.rows, at);
      const auto low = static_cast<int32_t>(mix.low), high = static_cast<int32_t>(mix.high);
      if (low != above_row[dy]) {
        above[dy] =
            low == below_row[dy] ? below[dy] : mixed_columns<kSide>(s, memory, columns, picture, low, dy, channel);
        above_row[dy] = low;
      }
      if (high != below_row[dy]) {
        below[dy] = high == low ? above[dy] : mixed_columns<kSide>(s, memory, columns, picture, high, dy, channel);
        below_row[dy] = high;
      }
      SETR_FAST_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        sum.of[i] += (1.0f - mix.high_weight) * above[dy].of[i] + mix.high_weight * below[dy].of[i];
      }
    }
    memory.finish(((picture * s.rows.out + row) * s.cols.out + column) * s.channels, channel, sum);
  }
}

// What output position `at` takes from `source`; nothing outside.
SETR_FAST_HD float share_of(const Axis<float>& axis, int64_t at, int64_t source) {
  if (at < 0 || at >= axis.out) return 0.0f;
  const auto mix = mix_at(axis, at);
  return (mix.low == source ? 1.0f - mix.high_weight : 0.0f) + (mix.high == source ? mix.high_weight : 0.0f);
}

SETR_FAST_HD int64_t combine_backward_threads(const TapShape& s) {
  return s.pictures * s.rows.in * s.cols.in * (s.padded / kLanes);
}

// Thread `index`: the gradient of all taps of z at one low-resolution pixel, eight channels. It gathers the outputs
// that the pixel takes part in, each read once for all taps. Memory: load_y(pixel, channel), store_z(offset, lanes).
template <int kSide, class Memory>
SETR_FAST_HD void combine_backward_pixel(const TapShape& s, const Memory& memory, int64_t index) {
  constexpr int kHalf = kSide / 2;
  const int64_t groups = s.padded / kLanes;
  const int64_t channel = index % groups * kLanes;
  const int64_t column = index / groups % s.cols.in;
  const int64_t row = index / groups / s.cols.in % s.rows.in;
  const int64_t picture = index / groups / s.cols.in / s.rows.in;
  const Span down = targets_of(s.rows, row), right = targets_of(s.cols, column);
  Lanes sum[kSide * kSide];
  SETR_FAST_UNROLL
  for (int tap = 0; tap < kSide * kSide; ++tap) {
    SETR_FAST_UNROLL
    for (int i = 0; i < kLanes; ++i) sum[tap].of[i] = 0.0f;
  }
  const int64_t top = down.begin - kHalf < 0 ? 0 : down.begin - kHalf;
  const int64_t bottom = down.end + kHalf > s.rows.out ? s.rows.out : down.end + kHalf;
  const int64_t left = right.begin - kHalf < 0 ? 0 : right.begin - kHalf;
  const int64_t stop = right.end + kHalf > s.cols.out ? s.cols.out : right.end + kHalf;
  for (int64_t y = top; y < bottom; ++y) {
    float of_row[kSide], of_column[kSide];
    SETR_FAST_UNROLL
    for (int dy = 0; dy < kSide; ++dy) of_row[dy] = share_of(s.rows, y + dy - kHalf, row);
    SETR_FAST_UNROLL
    for (int dx = 1; dx < kSide; ++dx) of_column[dx] = share_of(s.cols, left - 1 + dx - kHalf, column);
    for (int64_t x = left; x < stop; ++x) {
      SETR_FAST_UNROLL
      for (int dx = 1; dx < kSide; ++dx) of_column[dx - 1] = of_column[dx];
      of_column[kSide - 1] = share_of(s.cols, x + kHalf, column);
      const Lanes g = memory.load_y(((picture * s.rows.out + y) * s.cols.out + x) * s.channels, channel);
      SETR_FAST_UNROLL
      for (int tap = 0; tap < kSide * kSide; ++tap) {
        const float share = of_row[tap / kSide] * of_column[tap % kSide];
        SETR_FAST_UNROLL
        for (int i = 0; i < kLanes; ++i) sum[tap].of[i] += share * g.of[i];
      }
    }
  }
  const int64_t pixel = ((picture * s.rows.in + row) * s.cols.in + column) * (kSide * kSide) * s.padded;
  SETR_FAST_UNROLL
  for (int tap = 0; tap < kSide * kSide; ++tap) memory.store_z(pixel + tap * s.padded + channel, sum[tap]);
}

}  // namespace setr_fast
