// Pixels between low pixels whose leading classes lie far apart, in float64: few in any picture that a network made.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "upsample_cross_entropy_band.h"

namespace setr_fast::cross_entropy {
namespace {

constexpr double kLog2E = 1.44269504088896340736;
constexpr double kLeast = -1e30;  // the score of a class that is not there

double score_at(const Problem& p, int64_t picture, int64_t k, int64_t row, int64_t x) {
  const int64_t* strides = p.logits.strides;
  const int64_t at = picture * strides[0] + k * strides[1] + row * strides[2] + x * strides[3];
  float logit;
  if (p.logits.bfloat16) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(p.logits.data)[at]) << 16;
    std::memcpy(&logit, &bits, sizeof(logit));
  } else {
    logit = static_cast<const float*>(p.logits.data)[at];
  }
  const double score = static_cast<double>(logit) * kLog2E;
  return score < kLeast ? kLeast : score;
}

int64_t leader_of(const Problem& p, const float* scores) {
  for (int64_t k = 0; k < p.classes; ++k)
    if (scores[k] == 0.0f) return k;
  return 0;
}

}  // namespace

bool is_far(const Problem& p, const float* low_scores, const float* high_scores, int64_t left, int64_t right) {
  const float* corners[] = {low_scores + left, low_scores + right, high_scores + left, high_scores + right};
  for (const float* leading : corners) {
    const int64_t leader = leader_of(p, leading);
    for (const float* other : corners)
      if (other[leader] < kFarApart) return true;
  }
  return false;
}

void mix_far(const Problem& p, int64_t picture, int64_t low, int64_t high, int64_t x, FarColumn& to) {
  const auto mix = mix_at(p.columns, x);
  to.top.resize(static_cast<size_t>(p.classes));
  to.step.resize(static_cast<size_t>(p.classes));
  for (int64_t k = 0; k < p.classes; ++k) {
    const auto of_row = [&](int64_t row) {
      const double left = score_at(p, picture, k, row, mix.low), right = score_at(p, picture, k, row, mix.high);
      return left + mix.high_weight * (right - left);
    };
    to.top[k] = of_row(low);
    to.step[k] = of_row(high) - to.top[k];
  }
}

double scores_of_far(const Problem& p, const FarColumn& far, int64_t y, float* scores) {
  const double weight = mix_at(p.rows, y).high_weight;
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t k = 0; k < p.classes; ++k) largest = std::max(largest, far.top[k] + weight * far.step[k]);
  for (int64_t k = 0; k < p.padded(); ++k) {
    const double score = k < p.classes ? far.top[k] + weight * far.step[k] - largest : kLeast;
    scores[k] = static_cast<float>(score < kLeast ? kLeast : score);
  }
  return largest;
}

double far_score(const Problem& p, int64_t picture, int64_t k, int64_t y, int64_t x) {
  const auto down = mix_at(p.rows, y), across = mix_at(p.columns, x);
  const auto of_row = [&](int64_t row) {
    const double left = score_at(p, picture, k, row, across.low), right = score_at(p, picture, k, row, across.high);
    return left + across.high_weight * (right - left);
  };
  const double top = of_row(down.low);
  return top + down.high_weight * (of_row(down.high) - top);
}

}  // namespace setr_fast::cross_entropy
