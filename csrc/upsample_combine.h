// Upsampling and convolution commuted: from tap maps at low resolution to the convolution's output, and back.
//
// z[p, t] = W_t x[p] is a matrix product at low resolution. Here is what one thread of a GPU does with it: eight
// channels at a time, sums in float32. No address depends on a value, nothing is accumulated between threads, so the
// result is the same in every run. The same bodies run on the CPU in the tests.
#pragma once

#include <cmath>
#include <cstdint>

#include "bilinear.h"

#if defined(__CUDACC__)
#define SETR_FAST_UNROLL _Pragma("unroll")
#define SETR_FAST_UNROLL_3 _Pragma("unroll 3")
#else
#define SETR_FAST_UNROLL
#define SETR_FAST_UNROLL_3
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

// What a thread counts in 32 bits: rows, and the values of a line of z and of y.
SETR_FAST_HD bool addressable(const TapShape& s, int side) {
  constexpr int64_t kMost = INT32_MAX - kRows;
  return s.rows.out < kMost && s.rows.in < kMost && s.cols.in * side * side * s.padded < kMost &&
         s.cols.out * s.padded < kMost;
}

// Quotient and remainder by one division: a GPU has none for 64 bits.
struct Split {
  int64_t quotient, rest;
};

SETR_FAST_HD Split split(int64_t value, int64_t by) {
  const int64_t quotient = value / by;
  return {quotient, value - quotient * by};
}

// Where the taps of one output column look in a line of z (values from its start), and how much they take.
template <int kSide>
struct Columns {
  int32_t low[kSide], high[kSide];
  float low_weight[kSide], high_weight[kSide];
};

template <int kSide>
SETR_FAST_HD Columns<kSide> columns_of(const TapShape& s, int32_t column) {
  const auto cols = narrowed(s.cols);
  const auto padded = static_cast<int32_t>(s.padded);
  Columns<kSide> columns;
  SETR_FAST_UNROLL
  for (int dx = 0; dx < kSide; ++dx) {
    const int32_t at = column + dx - kSide / 2;
    const bool inside = at >= 0 && at < cols.out;
    const auto mix = mix_at(cols, inside ? at : column);
    columns.low[dx] = (mix.low * (kSide * kSide) + dx) * padded;
    columns.high[dx] = (mix.high * (kSide * kSide) + dx) * padded;
    columns.low_weight[dx] = inside ? 1.0f - mix.high_weight : 0.0f;  // a tap on the zero padding has no weight
    columns.high_weight[dx] = inside ? mix.high_weight : 0.0f;
  }
  return columns;
}

// A low-resolution row of one row of taps, mixed for one output column by all of them.
template <int kSide, class Memory>
SETR_FAST_HD Lanes mixed_columns(const Memory& memory, const Columns<kSide>& columns, int64_t line) {
  Lanes sum{};
  SETR_FAST_UNROLL
  for (int dx = 0; dx < kSide; ++dx) {
    const Lanes a = memory.load_z(line, columns.low[dx]);
    const Lanes b = memory.load_z(line, columns.high[dx]);
    SETR_FAST_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      sum.of[i] += columns.low_weight[dx] * a.of[i];
      sum.of[i] += columns.high_weight[dx] * b.of[i];
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
// Memory: load_z(line, offset), start(channel) gives the bias, finish(pixel, channel, lanes) writes.
template <int kSide, class Memory>
SETR_FAST_HD void combine_strip(const TapShape& s, const Memory& memory, int64_t index) {
  const auto rows = narrowed(s.rows);
  const Split group = split(index, s.padded / kLanes), across = split(group.quotient, s.cols.out);
  const Split down = split(across.quotient, strips_of(s));
  const int64_t channel = group.rest * kLanes, picture = down.quotient;
  const int32_t begin = static_cast<int32_t>(down.rest) * kRows;
  const int32_t end = begin + kRows < rows.out ? begin + kRows : rows.out;
  const Lanes bias = memory.start(channel);
  const auto columns = columns_of<kSide>(s, static_cast<int32_t>(across.rest));
  const int64_t line = s.cols.in * (kSide * kSide) * s.padded;
  const int64_t first_line = picture * s.rows.in * line + channel;
  Lanes above[kSide] = {}, below[kSide] = {};
  int32_t above_row[kSide], below_row[kSide];
  Mix<float, int32_t> mixes[kSide];  // of the rows of taps of an output row; the next row takes all but the first over
  SETR_FAST_UNROLL
  for (int dy = 0; dy < kSide; ++dy) {
    above_row[dy] = below_row[dy] = -1;
    const int32_t at = begin - 1 + dy - kSide / 2;
    mixes[dy] = mix_at(rows, at < 0 ? 0 : at);
  }
  int64_t pixel = ((picture * s.rows.out + begin) * s.cols.out + across.rest) * s.channels;
  for (int32_t row = begin; row < end; ++row, pixel += s.cols.out * s.channels) {
    SETR_FAST_UNROLL
    for (int dy = 1; dy < kSide; ++dy) mixes[dy - 1] = mixes[dy];
    mixes[kSide - 1] = mix_at(rows, row + kSide / 2);
    Lanes sum = bias;
    SETR_FAST_UNROLL
    for (int dy = 0; dy < kSide; ++dy) {
      const int32_t at = row + dy - kSide / 2;
      if (at < 0 || at >= rows.out) continue;
      const int32_t low = mixes[dy].low, high = mixes[dy].high;
      const int64_t taps = first_line + dy * kSide * s.padded;
      if (low != above_row[dy]) {
        above[dy] = low == below_row[dy] ? below[dy] : mixed_columns<kSide>(memory, columns, taps + low * line);
        above_row[dy] = low;
      }
      if (high != below_row[dy]) {
        below[dy] = high == low ? above[dy] : mixed_columns<kSide>(memory, columns, taps + high * line);
        below_row[dy] = high;
      }
      const float high_weight = mixes[dy].high_weight, low_weight = 1.0f - high_weight;
      SETR_FAST_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        sum.of[i] += low_weight * above[dy].of[i];
        sum.of[i] += high_weight * below[dy].of[i];
      }
    }
    memory.finish(pixel, channel, sum);
  }
}

// What output position `at` takes from `source`, nothing outside: a pixel's two sources lie a whole pixel apart, so its
// share falls from one to nothing with the distance between its position and the source.
SETR_FAST_HD float share_of(const Axis<float, int32_t>& axis, int32_t at, int32_t source) {
  if (at < 0 || at >= axis.out) return 0.0f;
  const float position = position_at(axis, at), last = static_cast<float>(axis.in - 1);
  const float share = 1.0f - fabsf((position < last ? position : last) - static_cast<float>(source));
  return share < 0.0f ? 0.0f : share;
}

// The outputs whose taps reach those that `source` takes part in.
SETR_FAST_HD Span<int32_t> reached(const Axis<float, int32_t>& axis, int32_t source, int half) {
  const Span<int32_t> found = targets_of(axis, source);
  return {found.begin - half < 0 ? 0 : found.begin - half, found.end + half > axis.out ? axis.out : found.end + half};
}

SETR_FAST_HD int64_t combine_backward_threads(const TapShape& s) {
  return s.pictures * s.rows.in * s.cols.in * (s.padded / kLanes);
}

// Thread `index`: the gradient of all taps of z at one low-resolution pixel, eight channels. It gathers the outputs
// that the pixel takes part in, each read once for all taps: a row of them is summed by the taps' columns, and the sums
// by the taps' rows. Memory: load_y(pixel, channel), store_z(offset, lanes).
template <int kSide, class Memory>
SETR_FAST_HD void combine_backward_pixel(const TapShape& s, const Memory& memory, int64_t index) {
  constexpr int kHalf = kSide / 2;
  const auto rows = narrowed(s.rows), cols = narrowed(s.cols);
  const Split group = split(index, s.padded / kLanes), across = split(group.quotient, s.cols.in);
  const Split of_picture = split(across.quotient, s.rows.in);
  const int64_t channel = group.rest * kLanes, picture = of_picture.quotient;
  const auto column = static_cast<int32_t>(across.rest), row = static_cast<int32_t>(of_picture.rest);
  const Span<int32_t> down = reached(rows, row, kHalf), right = reached(cols, column, kHalf);
  Lanes sum[kSide][kSide] = {};
  for (int32_t y = down.begin; y < down.end; ++y) {
    Lanes of_taps[kSide] = {};
    float of_column[kSide] = {};
    SETR_FAST_UNROLL
    for (int dx = 1; dx < kSide; ++dx) of_column[dx] = share_of(cols, right.begin - 1 + dx - kHalf, column);
    int64_t pixel = ((picture * s.rows.out + y) * s.cols.out + right.begin) * s.channels;
    SETR_FAST_UNROLL_3  // so many loads are on their way at once: a factor of two reaches six columns
        for (int32_t x = right.begin; x < right.end; ++x, pixel += s.channels) {
      SETR_FAST_UNROLL
      for (int dx = 1; dx < kSide; ++dx) of_column[dx - 1] = of_column[dx];
      of_column[kSide - 1] = share_of(cols, x + kHalf, column);
      const Lanes g = memory.load_y(pixel, channel);
      SETR_FAST_UNROLL
      for (int dx = 0; dx < kSide; ++dx) {
        SETR_FAST_UNROLL
        for (int i = 0; i < kLanes; ++i) of_taps[dx].of[i] += of_column[dx] * g.of[i];
      }
    }
    SETR_FAST_UNROLL
    for (int dy = 0; dy < kSide; ++dy) {
      const float of_row = share_of(rows, y + dy - kHalf, row);
      SETR_FAST_UNROLL
      for (int dx = 0; dx < kSide; ++dx) {
        SETR_FAST_UNROLL
        for (int i = 0; i < kLanes; ++i) sum[dy][dx].of[i] += of_row * of_taps[dx].of[i];
      }
    }
  }
  const int64_t pixel = across.quotient * s.cols.in + across.rest;
  SETR_FAST_UNROLL
  for (int tap = 0; tap < kSide * kSide; ++tap) {
    memory.store_z((pixel * (kSide * kSide) + tap) * s.padded + channel, sum[tap / kSide][tap % kSide]);
  }
}

}  // namespace setr_fast
