// One class of the Lovasz-softmax loss: its probability at every pixel, the sorted errors, the gradient at low size.
#pragma once

#include <cstdint>
#include <vector>

#include "upsample_cross_entropy_band.h"

namespace setr_fast::lovasz {

using cross_entropy::Columns;
using cross_entropy::Floats;
using cross_entropy::Problem;

// What all classes share. Scores are as in upsample_cross_entropy: (logit - the low pixel's largest) * log2(e).
struct Scene {
  const Problem& problem;
  const Columns& columns;
  const float* tops;           // [B, h, w]: the largest logit of each low pixel
  const float* log_sums;       // [B, H, W]: log2 of the sum of exponentials of the mixed scores
  const double* far_log_sums;  // [B, H, W] or none: the same of logits where cells lie far apart, else a NaN

  int64_t pixels() const { return problem.batch * problem.height * problem.width; }
};

// What one thread works in; the entries grow to what a class needs.
struct Bench {
  explicit Bench(const Scene& scene);
  std::vector<uint64_t> entries, sorted;
  std::vector<int32_t> labels;           // [W]
  std::vector<float> low_scores;         // [w]
  std::vector<float> lines[2], sums[2];  // [W]
};

// Returns the sum of errors times steps of class `k`, and leaves in `map` [B, H, W] p times the loss's derivative by p,
// both times `share`.
double work_class(const Scene& scene, Bench& bench, int64_t k, float share, float* map);

// Brings a map down to the low size and writes it as class `k` of the problem's gradient, float32.
void bring_down(const Scene& scene, Bench& bench, int64_t k, const float* map);

// The largest logit of each low pixel [B, h, w]. Returns whether another's score lies below kFarApart.
bool find_tops(const Problem& problem, float* tops);

}  // namespace setr_fast::lovasz
