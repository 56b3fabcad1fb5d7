// Registers the CPU kernel of upsample_lovasz: classes over threads, some at a time, added up in their own order, so
// that every run and any number of threads give the same bits.
//
// With q_k the loss's derivative by p_k, the gradient of score k is p_k (q_k - sum_j p_j q_j): a map per class, brought
// down to the low size at once, and one map for the sum, which a last pass over the exponentials takes off.
#include <limits>

#include "upsample_cross_entropy_call.h"
#include "upsample_lovasz_class.h"

namespace setr_fast {
namespace {

using cross_entropy::Floats;
using cross_entropy::Problem;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTogether = 8;  // classes whose maps are held at a time

std::vector<int64_t> present_classes(const Problem& p) {
  std::vector<bool> seen(static_cast<size_t>(p.classes));
  std::vector<int32_t> labels(static_cast<size_t>(p.width));
  for (int64_t row = 0; row < p.batch * p.height; ++row) {
    read_labels(p, row * p.width, p.width, labels.data());
    for (int32_t label : labels)
      if (label != cross_entropy::kNoLabel) seen[label] = true;
  }
  std::vector<int64_t> present;
  for (int64_t k = 0; k < p.classes; ++k)
    if (seen[k]) present.push_back(k);
  return present;
}

// Returns the loss; `mixed` [B, H, W] gets sum_j p_j q_j, and the problem's gradient p_k q_k, brought down.
double work_classes(const lovasz::Scene& scene, const std::vector<int64_t>& present, const float* weights,
                    float* mixed) {
  const Problem& p = scene.problem;
  const auto classes = static_cast<int64_t>(present.size()), pixels = scene.pixels();
  const Floats maps(std::min(kTogether, classes) * pixels);
  std::vector<double> losses(present.size());
  for (int64_t begin = 0; begin < classes; begin += kTogether) {
    const int64_t count = std::min(kTogether, classes - begin);
    cross_entropy::share_out(count, [&](std::atomic<int64_t>& next) {
      lovasz::Bench bench(scene);
      for (int64_t at; (at = next++) < count;) {
        const int64_t k = present[begin + at];
        const float share = (weights ? weights[k] : 1.0f) / static_cast<float>(classes);
        losses[begin + at] = work_class(scene, bench, k, share, maps.get() + at * pixels);
        if (p.with_gradient) bring_down(scene, bench, k, maps.get() + at * pixels);
      }
    });
    if (!p.with_gradient) continue;
    torch::stable::parallel_for(0, pixels, 1 << 14, [&](int64_t first, int64_t last) {
      for (int64_t at = 0; at < count; ++at) {
        const float* map = maps.get() + at * pixels;
        for (int64_t i = first; i < last; ++i) mixed[i] += map[i];
      }
    });
  }
  double loss = 0.0;
  for (double one : losses) loss += one;
  return loss;
}

std::tuple<Tensor, Tensor, Tensor> upsample_lovasz(const Tensor logits, const Tensor labels,
                                                   std::optional<Tensor> class_weights, int64_t height, int64_t width,
                                                   bool align_corners, int64_t ignore_index, bool with_gradient) {
  const Tensor packed = torch::stable::contiguous(labels);
  Problem problem = cross_entropy::problem_of(logits, packed, height, width, align_corners, ignore_index);
  const auto labelled = cross_entropy::count_labels(problem);
  const int64_t pixels = packed.numel();
  check(pixels < INT32_MAX, "upsample_lovasz: there must be fewer than 2^31 pixels, got ", pixels);
  std::vector<float> weights;
  if (class_weights) weights = cross_entropy::padded_weights(problem, *class_weights);
  const Floats tops(problem.batch * problem.low_height * problem.low_width), log_sums(pixels),
      mixed(with_gradient ? pixels : 0);
  std::vector<double> far_log_sums;
  if (lovasz::find_tops(problem, tops.get())) {
    far_log_sums.assign(static_cast<size_t>(pixels), std::numeric_limits<double>::quiet_NaN());
    problem.far_log_sums = far_log_sums.data();
  }
  problem.log_sums = log_sums.get();
  const auto total = cross_entropy::run(problem);
  problem.log_sums = nullptr;
  problem.far_log_sums = nullptr;

  const bool wide = !problem.logits.bfloat16;
  Tensor gradient =
      with_gradient ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, std::vector<int64_t>{0});
  Tensor summed = gradient;  // in float32
  if (with_gradient) {
    std::vector<int64_t> shape;
    for (int64_t i = 0; i < 4; ++i) shape.push_back(logits.size(i));
    if (!wide) summed = torch::stable::new_empty(logits, shape, ScalarType::Float);
    torch::stable::zero_(summed);
    problem.gradient = cross_entropy::maps_of(summed);
    std::fill(mixed.get(), mixed.get() + pixels, 0.0f);
  }
  problem.with_gradient = with_gradient;
  const auto present = present_classes(problem);
  const auto columns = columns_of(problem);
  const lovasz::Scene scene{problem, columns, tops.get(), log_sums.get(),
                            far_log_sums.empty() ? nullptr : far_log_sums.data()};
  const double found = work_classes(scene, present, weights.empty() ? nullptr : weights.data(), mixed.get());
  if (with_gradient) {
    problem.pixel_gradients = mixed.get();
    problem.scale = -1.0f;
    problem.of_labels = false;
    problem.adds = true;
    cross_entropy::run(problem);
    if (!wide) torch::stable::copy_(gradient, summed);
  }
  Tensor loss = torch::stable::new_empty(logits, std::vector<int64_t>{}, ScalarType::Float);
  *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(found);
  return {loss, cross_entropy::pixel_counts(logits, total, labelled), gradient};
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("upsample_lovasz", TORCH_BOX(&upsample_lovasz)); }

}  // namespace
}  // namespace setr_fast
