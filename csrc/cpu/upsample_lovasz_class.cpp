// The steps of the Jaccard loss end at the last pixel of the class: what has a smaller error than every pixel of the
// class has no step. So only pixels of other classes whose probability reaches the smallest error are sorted, which
// leaves the result what it is and takes nearly all of them away. Sorting is by the bits of the error, which of numbers
// in [0, 1] have the order of the numbers; it is stable, so equal errors stay in the order of the pixels.
#include "upsample_lovasz_class.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "../variants.h"

namespace setr_fast::lovasz {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kIgnored = 2.0f;        // no probability
constexpr uint32_t kOne = 0x3F800000u;  // bits of 1.0f
constexpr uint64_t kTruth = uint64_t{1} << 31, kPlace = kTruth - 1;
constexpr int kDigits = 3, kDigitBits = 10;

float logit_at(const Problem& p, int64_t offset) {
  if (!p.logits.bfloat16) return static_cast<const float*>(p.logits.data)[offset];
  return std::bit_cast<float>(uint32_t{static_cast<const uint16_t*>(p.logits.data)[offset]} << 16);
}

// Probabilities along a row of pixels between two lines of scores; 2^t as in upsample_cross_entropy_pixels.h.
SETR_FAST_VARIANTS void probabilities(const float* low, const float* high, float weight, const float* log_sums,
                                      int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    float t = low[i] + weight * (high[i] - low[i]) - log_sums[i];
    t = t < -127.0f ? -127.0f : t;
    const float shifted = t + 12582912.0f, f = t - (shifted - 12582912.0f);
    float p = f * 1.534581038e-04f + 1.339993121e-03f;
    p = p * f + 9.618488963e-03f;
    p = p * f + 5.550328777e-02f;
    p = p * f + 2.402264689e-01f;
    p = p * f + 6.931472057e-01f;
    p = p * f + 1.0f;
    const uint32_t power = (std::bit_cast<uint32_t>(shifted) << 23) + kOne;
    p *= std::bit_cast<float>(power);
    to[i] = p > 1.0f ? 1.0f : p;
  }
}

SETR_FAST_VARIANTS void add_row(const float* values, float low, float high, int64_t count, float* low_sums,
                                float* high_sums) {
  for (int64_t i = 0; i < count; ++i) {
    low_sums[i] += low * values[i];
    high_sums[i] += high * values[i];
  }
}

// A low row of the class's scores, mixed along x.
void make_line(const Scene& scene, Bench& bench, int64_t k, int64_t picture, int64_t row, std::vector<float>& line) {
  const Problem& p = scene.problem;
  const float* tops = scene.tops + (picture * p.low_height + row) * p.low_width;
  const int64_t* strides = p.logits.strides;
  const int64_t first = picture * strides[0] + k * strides[1] + row * strides[2];
  for (int64_t x = 0; x < p.low_width; ++x) {
    const float score = (logit_at(p, first + x * strides[3]) - tops[x]) * kLog2E;
    bench.low_scores[x] = score < -1e30f ? -1e30f : score;
  }
  const float* scores = bench.low_scores.data();
  for (int64_t x = 0; x < p.width; ++x) {
    const float left = scores[scene.columns.low[x]], right = scores[scene.columns.high[x]];
    line[x] = left + scene.columns.weight[x] * (right - left);
  }
}

struct Found {
  int64_t count = 0;                                     // pixels of the class
  float least = std::numeric_limits<float>::infinity();  // the smallest error among them
};

// Fills `map` with probabilities: below zero (-0 too) where the label is the class, kIgnored where pixels do not count.
Found fill_map(const Scene& scene, Bench& bench, int64_t k, float* map) {
  const Problem& p = scene.problem;
  Found found;
  for (int64_t picture = 0; picture < p.batch; ++picture) {
    int64_t held[2] = {-1, -1};
    for (int64_t y = 0; y < p.height; ++y) {
      const auto mix = mix_at(p.rows, y);
      for (int64_t row : {mix.low, mix.high}) {
        if (held[row % 2] == row) continue;
        make_line(scene, bench, k, picture, row, bench.lines[row % 2]);
        held[row % 2] = row;
      }
      const int64_t first = (picture * p.height + y) * p.width;
      float* to = map + first;
      probabilities(bench.lines[mix.low % 2].data(), bench.lines[mix.high % 2].data(),
                    static_cast<float>(mix.high_weight), scene.log_sums + first, p.width, to);
      for (int64_t x = 0; x < p.width && scene.far_log_sums; ++x) {
        const double log_sum = scene.far_log_sums[first + x];
        if (std::isnan(log_sum)) continue;
        const double p_of = std::exp2(cross_entropy::far_score(p, picture, k, y, x) - log_sum);
        to[x] = static_cast<float>(std::min(p_of, 1.0));
      }
      read_labels(p, first, p.width, bench.labels.data());
      for (int64_t x = 0; x < p.width; ++x) {
        const int32_t label = bench.labels[x];
        if (label == cross_entropy::kNoLabel) to[x] = kIgnored;
        if (label != k) continue;
        const float error = 1.0f - to[x];
        found.least = error < found.least ? error : found.least;
        ++found.count;
        to[x] = -to[x];
      }
    }
  }
  return found;
}

// Sorts by the upper 32 bits, of which 30 are used.
void sort_entries(Bench& bench) {
  bench.sorted.resize(bench.entries.size());
  std::array<std::array<uint32_t, 1 << kDigitBits>, kDigits> counts{};
  const auto digit = [](uint64_t entry, int which) {
    return (entry >> (32 + which * kDigitBits)) & ((1 << kDigitBits) - 1);
  };
  for (uint64_t entry : bench.entries)
    for (int which = 0; which < kDigits; ++which) ++counts[which][digit(entry, which)];
  for (int which = 0; which < kDigits; ++which) {
    uint32_t before = 0;
    for (uint32_t& count : counts[which]) before += std::exchange(count, before);
    for (uint64_t entry : bench.entries) bench.sorted[counts[which][digit(entry, which)]++] = entry;
    bench.entries.swap(bench.sorted);
  }
}

}  // namespace

Bench::Bench(const Scene& scene)
    : labels(static_cast<size_t>(scene.problem.width)), low_scores(static_cast<size_t>(scene.problem.low_width)) {
  for (auto* some : {&lines, &sums})
    for (auto& line : *some) line.resize(static_cast<size_t>(scene.problem.width));
}

double work_class(const Scene& scene, Bench& bench, int64_t k, float share, float* map) {
  const Found found = fill_map(scene, bench, k, map);
  bench.entries.clear();
  for (int64_t i = 0; i < scene.pixels(); ++i) {
    const bool here = std::signbit(map[i]);
    const float error = here ? 1.0f + map[i] : map[i];
    if (!here && (error < found.least || error == kIgnored)) {
      map[i] = 0.0f;
      continue;
    }
    const uint32_t bits = std::bit_cast<uint32_t>(error);  // of a NaN: beyond those of 1
    const uint64_t key = bits < kOne ? kOne - bits : 0;
    bench.entries.push_back(key << 32 | (here ? kTruth : 0) | static_cast<uint64_t>(i));
  }
  sort_entries(bench);
  double inside = static_cast<double>(found.count), either = inside, loss = 0.0;  // intersection and union
  for (uint64_t entry : bench.entries) {
    const bool here = (entry & kTruth) != 0;
    float& at = map[entry & kPlace];
    const float p = std::fabs(at);
    // The Jaccard loss 1 - inside / either grows by one less inside, or by one more in the union.
    const double step = here ? 1.0 / either : inside / (either * (either + 1.0));
    loss += static_cast<double>(here ? 1.0f - p : p) * step;
    at = p * static_cast<float>(here ? -step : step) * share;
    here ? inside -= 1.0 : either += 1.0;
  }
  return loss * static_cast<double>(share);
}

void bring_down(const Scene& scene, Bench& bench, int64_t k, const float* map) {
  const Problem& p = scene.problem;
  auto* gradient = static_cast<float*>(p.gradient.data);
  const int64_t* strides = p.gradient.strides;
  for (int64_t picture = 0; picture < p.batch; ++picture) {
    std::fill(bench.sums[0].begin(), bench.sums[0].end(), 0.0f);
    for (int64_t row = 0; row < p.low_height; ++row) {
      auto &low = bench.sums[row % 2], &high = bench.sums[1 - row % 2];
      std::fill(high.begin(), high.end(), 0.0f);
      const int64_t last = std::min(first_from(p.rows, row + 1), p.height);
      for (int64_t y = std::min(first_from(p.rows, row), p.height); y < last; ++y) {
        const auto weight = static_cast<float>(mix_at(p.rows, y).high_weight);
        const float* values = map + (picture * p.height + y) * p.width;
        add_row(values, 1.0f - weight, weight, p.width, low.data(), high.data());
      }
      if (row + 1 == p.low_height)
        for (int64_t x = 0; x < p.width; ++x) low[x] += high[x];  // below the last row there is the last row
      auto& sums = bench.low_scores;
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t x = 0; x < p.width; ++x) {
        sums[scene.columns.low[x]] += low[x] * (1.0f - scene.columns.weight[x]);
        sums[scene.columns.high[x]] += low[x] * scene.columns.weight[x];
      }
      float* to = gradient + picture * strides[0] + k * strides[1] + row * strides[2];
      for (int64_t x = 0; x < p.low_width; ++x) to[x * strides[3]] = sums[x];
    }
  }
}

bool find_tops(const Problem& p, float* tops) {
  bool wide = false;
  const Floats logits(p.row_floats());
  for (int64_t row = 0; row < p.batch * p.low_height; ++row) {
    read_row(p, row / p.low_height, row % p.low_height, logits.get());
    for (int64_t x = 0; x < p.low_width; ++x) {
      const float* pixel = logits.get() + x * p.padded();
      float top = -std::numeric_limits<float>::infinity();
      for (int64_t k = 0; k < p.classes; ++k) top = pixel[k] > top ? pixel[k] : top;
      tops[row * p.low_width + x] = top;
      for (int64_t k = 0; k < p.classes; ++k) wide |= (pixel[k] - top) * kLog2E < cross_entropy::kFarApart;
    }
  }
  return wide;
}

}  // namespace setr_fast::lovasz
