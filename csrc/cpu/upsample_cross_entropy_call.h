// What the CPU ops on upsampled logits share: checks, bands over threads, sums.
//
// A picture is cut into bands of low-resolution rows, the same for any number of threads; threads take bands as they
// come. Where two bands meet, each leaves its share of the gradient in a buffer of its own, and the shares are added in
// one order afterwards: every run gives the same bits.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "../checks.h"
#include "upsample_cross_entropy_band.h"

namespace setr_fast::cross_entropy {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr const char* kName = "upsample_cross_entropy";

inline LabelType label_type(const Tensor& labels) {
  switch (labels.scalar_type()) {
    case ScalarType::Byte:
      return LabelType::kUint8;
    case ScalarType::Short:
      return LabelType::kInt16;
    case ScalarType::Int:
      return LabelType::kInt32;
    case ScalarType::Long:
      return LabelType::kInt64;
    default:
      throw ShapeError(text(kName, ": labels must be uint8, int16, int32 or int64"));
  }
}

inline Maps maps_of(const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::BFloat16, kName, ": logits must be float32 or bfloat16");
  Maps maps{const_cast<void*>(tensor.const_data_ptr()), type == ScalarType::BFloat16, {}};
  for (int64_t i = 0; i < 4; ++i) maps.strides[i] = tensor.stride(i);
  return maps;
}

// What the three ops share; `labels` is packed and outlives the problem, as do the logits.
inline Problem problem_of(const Tensor& logits, const Tensor& labels, int64_t height, int64_t width, bool align_corners,
                          int64_t ignore_index) {
  check(logits.dim() == 4 && labels.dim() == 3 && logits.size(0) == labels.size(0), kName,
        ": logits and labels must be [B, K, h, w] and [B, H, W] of one B");
  for (int64_t i = 1; i < 4; ++i) check(logits.size(i) > 0, kName, ": logits must not be empty");
  check(logits.size(1) <= INT32_MAX, kName, ": there must be fewer than 2^31 classes, got ", logits.size(1));
  check(labels.size(1) <= height && labels.size(2) <= width, kName, ": labels must be at most ",
        pair_text(height, width), " pixels, got ", pair_text(labels.size(1), labels.size(2)));
  Problem problem{};
  problem.batch = logits.size(0);
  problem.classes = logits.size(1);
  problem.low_height = logits.size(2);
  problem.low_width = logits.size(3);
  problem.height = labels.size(1);
  problem.width = labels.size(2);
  problem.rows = make_axis<double>(problem.low_height, height, align_corners);
  problem.columns = make_axis<double>(problem.low_width, width, align_corners);
  problem.logits = maps_of(logits);
  problem.labels = labels.const_data_ptr();
  problem.label_type = label_type(labels);
  problem.ignore_index = ignore_index;
  problem.weight_sum = static_cast<float>(problem.classes);
  problem.scale = 1.0f;
  problem.of_labels = true;
  return problem;
}

// Runs `work(index)` for all of [0, count) on torch's threads, each taking the next one that is left.
template <class Work>
void share_out(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) work(next);
  });
}

// Counts the pixels that are not ignored and adds up their class weights; an illegal label is an error.
inline LabelCount count_labels(const Problem& problem) {
  const int64_t rows = problem.batch * problem.height;
  std::vector<LabelCount> counts(static_cast<size_t>(rows));
  share_out(rows, [&](std::atomic<int64_t>& next) {
    std::vector<int32_t> labels(static_cast<size_t>(problem.width));
    for (int64_t row; (row = next++) < rows;)
      counts[row] = read_labels(problem, row * problem.width, problem.width, labels.data());
  });
  LabelCount total;
  for (const auto& row : counts) {
    check(!row.has_illegal, kName, ": every label must be 0 to ", problem.classes - 1, " or the ignored label ",
          problem.ignore_index, ", got ", row.illegal);
    total.counted += row.counted;
    total.weight += row.weight;
  }
  return total;
}

inline BandResult run(const Problem& problem) {
  const int64_t bands = problem.bands(), all = problem.batch * bands, floats = problem.row_floats();
  const auto columns = columns_of(problem);
  std::vector<BandResult> results(static_cast<size_t>(all));
  const Floats shares(problem.with_gradient ? 2 * all * floats : 0);
  share_out(all, [&](std::atomic<int64_t>& next) {
    Workspace space(problem);
    for (int64_t at; (at = next++) < all;) {
      const int64_t band = at % bands;
      float* first = shares.get() + 2 * at * floats;
      results[at] = work_band(problem, columns, space, at / bands, problem.band_begin(band),
                              problem.band_begin(band + 1), first, first + floats);
    }
  });
  if (problem.with_gradient) {
    torch::stable::parallel_for(0, all, 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        if (at % bands == 0) continue;
        float* first = shares.get() + 2 * at * floats;
        const float* beyond = first - floats;  // what the band before left for this one's first row
        for (int64_t i = 0; i < floats; ++i) first[i] += beyond[i];
        write_row(problem, at / bands, problem.band_begin(at % bands), first);
      }
    });
  }
  BandResult total;
  for (const auto& result : results) {
    total.loss += result.loss;
    total.correct += result.correct;
    total.sums.resize(result.sums.size());
    for (size_t i = 0; i < result.sums.size(); ++i) total.sums[i] += result.sums[i];
  }
  return total;
}

// Class weights [padded], zero beyond the last class.
inline std::vector<float> padded_weights(const Problem& problem, const Tensor& weights) {
  check(weights.scalar_type() == ScalarType::Float && weights.numel() == problem.classes, kName,
        ": class_weights must be ", problem.classes, " float32, got ", weights.numel());
  const Tensor packed = torch::stable::contiguous(weights);
  const auto* values = static_cast<const float*>(packed.const_data_ptr());
  std::vector<float> padded(static_cast<size_t>(problem.padded()), 0.0f);
  std::copy(values, values + problem.classes, padded.begin());
  return padded;
}

inline Tensor pixel_counts(const Tensor& like, const BandResult& total, const LabelCount& labelled) {
  Tensor pixels = torch::stable::new_empty(like, std::vector<int64_t>{2}, ScalarType::Long);
  static_cast<int64_t*>(pixels.mutable_data_ptr())[0] = total.correct;
  static_cast<int64_t*>(pixels.mutable_data_ptr())[1] = labelled.counted;
  return pixels;
}

}  // namespace setr_fast::cross_entropy
