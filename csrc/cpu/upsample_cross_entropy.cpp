// Registers the CPU kernels of upsample_cross_entropy and upsample_cross_entropy_map.
#include "upsample_cross_entropy_call.h"

namespace setr_fast {
namespace {

using cross_entropy::BandResult;
using cross_entropy::count_labels;
using cross_entropy::kName;
using cross_entropy::LabelCount;
using cross_entropy::maps_of;
using cross_entropy::padded_weights;
using cross_entropy::pixel_counts;
using cross_entropy::Problem;
using cross_entropy::problem_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> upsample_cross_entropy(const Tensor logits, const Tensor labels,
                                                          std::optional<Tensor> class_weights, int64_t height,
                                                          int64_t width, bool align_corners, int64_t ignore_index,
                                                          std::string averaging, double label_smoothing,
                                                          bool with_gradient) {
  const Tensor packed = torch::stable::contiguous(labels);
  Problem problem = problem_of(logits, packed, height, width, align_corners, ignore_index);
  std::vector<float> weights;
  if (class_weights) {
    weights = padded_weights(problem, *class_weights);
    problem.class_weights = weights.data();
    problem.weight_sum = 0.0f;
    for (float weight : weights) problem.weight_sum += weight;
  }
  problem.smoothing = static_cast<float>(label_smoothing);
  const LabelCount labelled = count_labels(problem);
  const double counted = static_cast<double>(labelled.counted);
  double divisor = averaging == "all" ? static_cast<double>(packed.numel()) : counted;
  if (averaging == "valid" && class_weights) divisor = labelled.weight;
  const double share = divisor > 0.0 ? 1.0 / divisor : 0.0;
  problem.scale = static_cast<float>(share);
  problem.with_gradient = with_gradient;
  Tensor gradient =
      with_gradient ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, std::vector<int64_t>{0});
  if (with_gradient) problem.gradient = maps_of(gradient);
  const BandResult total = cross_entropy::run(problem);
  Tensor loss = torch::stable::new_empty(logits, std::vector<int64_t>{}, ScalarType::Float);
  *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(total.loss * share);
  return {loss, pixel_counts(logits, total, labelled), gradient};
}

std::tuple<Tensor, Tensor> upsample_cross_entropy_map(const Tensor logits, const Tensor labels, int64_t height,
                                                      int64_t width, bool align_corners, int64_t ignore_index) {
  const Tensor packed = torch::stable::contiguous(labels);
  Problem problem = problem_of(logits, packed, height, width, align_corners, ignore_index);
  const LabelCount labelled = count_labels(problem);
  Tensor losses = torch::stable::new_empty(logits, std::vector<int64_t>{problem.batch, problem.height, problem.width},
                                           ScalarType::Float);
  problem.losses = static_cast<float*>(losses.mutable_data_ptr());
  return {losses, pixel_counts(logits, cross_entropy::run(problem), labelled)};
}

Tensor upsample_cross_entropy_map_backward(const Tensor grad, const Tensor logits, const Tensor labels, int64_t height,
                                           int64_t width, bool align_corners, int64_t ignore_index) {
  const Tensor packed = torch::stable::contiguous(labels), packed_grad = torch::stable::contiguous(grad);
  Problem problem = problem_of(logits, packed, height, width, align_corners, ignore_index);
  check(grad.scalar_type() == ScalarType::Float && grad.numel() == labels.numel(), kName,
        ": the map's gradient must be float32 of the labels' shape");
  problem.pixel_gradients = static_cast<const float*>(packed_grad.const_data_ptr());
  problem.with_gradient = true;
  Tensor gradient = torch::stable::empty_like(logits);
  problem.gradient = maps_of(gradient);
  cross_entropy::run(problem);
  return gradient;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy));
  m.impl("upsample_cross_entropy_map", TORCH_BOX(&upsample_cross_entropy_map));
  m.impl("upsample_cross_entropy_map_backward", TORCH_BOX(&upsample_cross_entropy_map_backward));
}

}  // namespace
}  // namespace setr_fast
