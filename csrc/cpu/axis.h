// Where an output pixel looks in the source along one axis: OpenCV's rules for INTER_LINEAR and INTER_NEAREST.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../checks.h"

namespace setr_fast {

using Size = std::array<int64_t, 2>;  // rows, columns

// Sides beyond these are a mistake of the caller, and keep every product below inside int64 and double.
constexpr int64_t kMaxSide = int64_t{1} << 20;
constexpr int64_t kMaxCropSide = int64_t{1} << 15;

inline void check_geometry(const char* where, Size source, Size size, Size offset, Size crop) {
  for (int i = 0; i < 2; ++i) {
    check(source[i] >= 1 && source[i] <= kMaxSide, where, ": the picture must be 1 to ", kMaxSide,
          " pixels high and wide, got ", pair_text(source[0], source[1]));
    check(size[i] >= 1 && size[i] <= kMaxSide, where, ": size must be (height, width) of 1 to ", kMaxSide, ", got ",
          pair_text(size[0], size[1]));
    check(offset[i] >= 0 && offset[i] <= kMaxSide, where, ": offset must be (top, left) of 0 to ", kMaxSide, ", got ",
          pair_text(offset[0], offset[1]));
    check(crop[i] >= 1 && crop[i] <= kMaxCropSide, where, ": crop must be (height, width) of 1 to ", kMaxCropSide,
          ", got ", pair_text(crop[0], crop[1]));
  }
}

// How many of `crop` pixels from `offset` on lie inside the resized picture.
inline int64_t covered(int64_t size, int64_t offset, int64_t crop) {
  return std::clamp<int64_t>(size - offset, 0, crop);
}

// OpenCV computes the scale as the inverse of the rounded inverse; source / out differs in the last bit.
inline double scale_of(int64_t source, int64_t out) {
  return 1.0 / (static_cast<double>(out) / static_cast<double>(source));
}

struct LinearAxis {
  std::vector<int32_t> low, high;                // the two source pixels
  std::vector<int16_t> low_weight, high_weight;  // in 1/2048
};

// Pixels first, first + 1, ... (count of them) of an axis resized from `source` to `out` pixels. Beyond the border the
// columns take the border pixel whole, the rows mix it with itself: that rounds differently, and OpenCV does so.
inline LinearAxis linear_axis(int64_t source, int64_t out, int64_t first, int64_t count, bool columns) {
  LinearAxis axis;
  const double scale = scale_of(source, out);
  const auto last = static_cast<int32_t>(source - 1);
  for (int64_t i = first; i < first + count; ++i) {
    const auto position = static_cast<float>((static_cast<double>(i) + 0.5) * scale - 0.5);
    auto low = static_cast<int32_t>(std::floor(position));
    float fraction = position - static_cast<float>(low);
    if (columns && (low < 0 || low >= last)) fraction = 0.0f;
    axis.low.push_back(std::clamp(low, 0, last));
    axis.high.push_back(std::clamp(low + 1, 0, last));
    axis.low_weight.push_back(static_cast<int16_t>(std::lrint((1.0f - fraction) * 2048.0f)));
    axis.high_weight.push_back(static_cast<int16_t>(std::lrint(fraction * 2048.0f)));
  }
  return axis;
}

inline std::vector<int32_t> nearest_axis(int64_t source, int64_t out, int64_t first, int64_t count) {
  std::vector<int32_t> axis;
  const double scale = scale_of(source, out);
  for (int64_t i = first; i < first + count; ++i) {
    const auto position = static_cast<int64_t>(std::floor(static_cast<double>(i) * scale));
    axis.push_back(static_cast<int32_t>(std::min(position, source - 1)));
  }
  return axis;
}

}  // namespace setr_fast
