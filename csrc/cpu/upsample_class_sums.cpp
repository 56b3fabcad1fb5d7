// Registers the CPU kernels of upsample_class_sums: the loops are those of upsample_cross_entropy, with other sums.
#include "upsample_cross_entropy_call.h"

namespace setr_fast {
namespace {

using cross_entropy::Problem;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kWhere = "upsample_class_sums";

Problem sums_problem(const Tensor& logits, const Tensor& labels, int64_t height, int64_t width, bool align_corners,
                     int64_t ignore_index, int64_t exponent) {
  check(exponent == 1 || exponent == 2, kWhere, ": exponent must be 1 or 2, got ", exponent);
  Problem problem = cross_entropy::problem_of(logits, labels, height, width, align_corners, ignore_index);
  problem.exponent = static_cast<int>(exponent);
  return problem;
}

std::tuple<Tensor, Tensor> upsample_class_sums(const Tensor logits, const Tensor labels, int64_t height, int64_t width,
                                               bool align_corners, int64_t ignore_index, int64_t exponent) {
  const Tensor packed = torch::stable::contiguous(labels);
  const Problem problem = sums_problem(logits, packed, height, width, align_corners, ignore_index, exponent);
  const auto labelled = cross_entropy::count_labels(problem);
  auto total = cross_entropy::run(problem);
  total.sums.resize(static_cast<size_t>(2 * problem.padded()));  // of no pictures at all
  Tensor sums = torch::stable::new_empty(logits, std::vector<int64_t>{2, problem.classes}, ScalarType::Float);
  auto* to = static_cast<float*>(sums.mutable_data_ptr());
  for (int64_t which = 0; which < 2; ++which)
    for (int64_t k = 0; k < problem.classes; ++k)
      to[which * problem.classes + k] = static_cast<float>(total.sums[which * problem.padded() + k]);
  return {sums, cross_entropy::pixel_counts(logits, total, labelled)};
}

Tensor upsample_class_sums_backward(const Tensor grad, const Tensor logits, const Tensor labels, int64_t height,
                                    int64_t width, bool align_corners, int64_t ignore_index, int64_t exponent) {
  const Tensor packed = torch::stable::contiguous(labels), slopes = torch::stable::contiguous(grad);
  Problem problem = sums_problem(logits, packed, height, width, align_corners, ignore_index, exponent);
  check(grad.scalar_type() == ScalarType::Float && grad.numel() == 2 * problem.classes, kWhere,
        ": the sums' gradient must be float32 [2, K]");
  const auto* from = static_cast<const float*>(slopes.const_data_ptr());
  const int64_t padded = problem.padded();
  const cross_entropy::Floats kept(2 * padded);
  std::fill(kept.get(), kept.get() + 2 * padded, 0.0f);
  for (int64_t k = 0; k < problem.classes; ++k) {
    kept.get()[k] = from[k];
    kept.get()[padded + k] = from[problem.classes + k] * static_cast<float>(exponent);
  }
  problem.label_slopes = kept.get();
  problem.power_slopes = kept.get() + padded;
  problem.with_gradient = true;
  Tensor gradient = torch::stable::empty_like(logits);
  problem.gradient = cross_entropy::maps_of(gradient);
  cross_entropy::run(problem);
  return gradient;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) {
  m.impl("upsample_class_sums", TORCH_BOX(&upsample_class_sums));
  m.impl("upsample_class_sums_backward", TORCH_BOX(&upsample_class_sums_backward));
}

}  // namespace
}  // namespace setr_fast
