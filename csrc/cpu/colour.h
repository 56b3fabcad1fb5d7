// OpenCV's 8-bit RGB <-> HSV (H 0..179), with saturation looked up and hue turned in between.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace setr_fast {

constexpr float kUnit = 1.0f / 255.0f;

struct ColourTables {
  int32_t saturation_of[256];  // 255 / v in 1/4096
  int32_t hue_of[256];         // 30 / diff in 1/4096
  // Back to RGB: per hue and saturation the share of v that the middle channel gets. The one multiply-add is rounded
  // once, as OpenCV's vector code on machines with FMA does it; float64 gives the same float32 (tested for all inputs).
  std::vector<float> middle = std::vector<float>(180 * 256);

  ColourTables() {
    saturation_of[0] = hue_of[0] = 0;
    for (int i = 1; i < 256; ++i) {
      saturation_of[i] = static_cast<int32_t>(std::lrint((255 << 12) / static_cast<double>(i)));
      hue_of[i] = static_cast<int32_t>(std::lrint((180 << 12) / (6.0 * i)));
    }
    for (int h = 0; h < 180; ++h) {
      const float turn = static_cast<float>(h) * (6.0f / 180.0f);
      const float sector = std::floor(turn);
      float part = turn - sector;
      if (static_cast<int>(sector) % 2 == 0) part = 1.0f - part;  // the channel rises in these sectors
      for (int s = 0; s < 256; ++s) {
        const float unit = static_cast<float>(s) * kUnit;
        middle[h * 256 + s] = static_cast<float>(1.0 - static_cast<double>(unit) * static_cast<double>(part));
      }
    }
  }
};

// Pixels r, g, b in place. `saturation` is a table of 256 or null, `hue` lies in 0..179. Scalar: neighbours mostly take
// the same branches; a version in planes without branches was no faster, as GCC 12 does not vectorise its look-ups.
inline void adjust_hsv(uint8_t* rgb, int64_t pixels, const uint8_t* saturation, int hue) {
  static const ColourTables tables;
  // Which of (largest, smallest, middle) R, G and B are, per sector of 60 degrees.
  static constexpr uint8_t kOrder[6][3] = {{0, 2, 1}, {2, 0, 1}, {1, 0, 2}, {1, 2, 0}, {2, 1, 0}, {0, 1, 2}};
  for (uint8_t* p = rgb; p != rgb + 3 * pixels; p += 3) {
    const int r = p[0], g = p[1], b = p[2];
    const int v = std::max({r, g, b});
    const int diff = v - std::min({r, g, b});
    int s = (diff * tables.saturation_of[v] + 2048) >> 12;
    int h = v == r ? g - b : v == g ? b - r + 2 * diff : r - g + 4 * diff;
    h = (h * tables.hue_of[diff] + 2048) >> 12;
    h += hue + (h < 0 ? 180 : 0);
    if (h >= 180) h -= 180;
    if (saturation) s = saturation[s];
    const float value = static_cast<float>(v) * kUnit;
    const float smallest = 1.0f - static_cast<float>(s) * kUnit;
    const uint8_t shades[3] = {
        static_cast<uint8_t>(value * 255.0f),
        static_cast<uint8_t>(value * smallest * 255.0f),
        static_cast<uint8_t>(value * tables.middle[h * 256 + s] * 255.0f),
    };
    const uint8_t* order = kOrder[h / 30];
    for (int c = 0; c < 3; ++c) p[c] = shades[order[c]];
  }
}

}  // namespace setr_fast
