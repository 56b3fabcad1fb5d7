// Windows, scales and mirrored views merged into scores or classes: reads the tables of ops/upsample_accumulate.py for
// upsample_accumulate_core.cpp, which computes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../checks.h"
#include "upsample_accumulate_core.h"

namespace setr_fast {
namespace {

using torch::headeronly::HeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kFacts = 6;  // windows down and across, height, width, column taps, row taps

// The flat tables, kept packed while a call lasts.
struct Tables {
  Tensor logits, columns, column_weights, rows, row_weights;
};

Mosaic mosaic_of(const Tables& tables, HeaderOnlyArrayRef<int64_t> facts, int64_t classes,
                 HeaderOnlyArrayRef<int64_t> size, bool probabilities) {
  check(facts.size() >= kFacts && facts.size() % kFacts == 0,
        "upsample_accumulate: views must be six numbers each, got ", facts.size());
  check(size.size() == 2 && size[0] >= 0 && size[1] >= 0, "upsample_accumulate: size must be two numbers");
  check(classes >= 1, "upsample_accumulate: num_classes must be positive, got ", classes);
  const bool bfloat16 = tables.logits.scalar_type() == ScalarType::BFloat16;
  check(bfloat16 || tables.logits.scalar_type() == ScalarType::Float,
        "upsample_accumulate: logits must be float32 or bfloat16");
  check(tables.columns.scalar_type() == ScalarType::Int && tables.rows.scalar_type() == ScalarType::Int,
        "upsample_accumulate: columns and rows must be int32");
  check(
      tables.column_weights.scalar_type() == ScalarType::Float && tables.row_weights.scalar_type() == ScalarType::Float,
      "upsample_accumulate: weights must be float32");
  const auto* logits = static_cast<const char*>(tables.logits.const_data_ptr());
  const auto* columns = static_cast<const int32_t*>(tables.columns.const_data_ptr());
  const auto* column_weights = static_cast<const float*>(tables.column_weights.const_data_ptr());
  const auto* rows = static_cast<const int32_t*>(tables.rows.const_data_ptr());
  const auto* row_weights = static_cast<const float*>(tables.row_weights.const_data_ptr());
  int64_t values = 0, starts = 0, start_weights = 0, sources = 0;
  Mosaic mosaic{{}, classes, size[0], size[1], bfloat16, probabilities};
  for (size_t at = 0; at < facts.size(); at += kFacts) {
    const int64_t down = facts[at], across = facts[at + 1], height = facts[at + 2], width = facts[at + 3];
    const int64_t column_taps = facts[at + 4], row_taps = facts[at + 5];
    check(down >= 1 && across >= 1 && height >= 1 && width >= 1 && column_taps >= 1 && row_taps >= 1,
          "upsample_accumulate: every number of views must be positive");
    LogitsView view{{},          across,           height,
                    width,       columns + starts, column_weights + start_weights,
                    column_taps, rows + sources,   row_weights + sources,
                    row_taps};
    for (int64_t window = 0; window < down * across; ++window) {
      // A row of all classes lies together: that is what a strip is made of.
      view.windows.push_back({logits + values * (bfloat16 ? 2 : 4), width, classes * width, 1});
      values += classes * height * width;
    }
    starts += across * size[1];
    start_weights += across * column_taps * size[1];
    sources += row_taps * size[0];
    check(values <= tables.logits.numel() && starts <= tables.columns.numel() &&
              start_weights <= tables.column_weights.numel() && sources <= tables.rows.numel() &&
              sources <= tables.row_weights.numel(),
          "upsample_accumulate: logits and tables must be as long as views say");
    for (int64_t i = 0; i < across * size[1]; ++i) {
      check(view.column_start[i] >= 0 && view.column_start[i] < width, "upsample_accumulate: columns must be 0 to ",
            width - 1, ", got ", view.column_start[i]);
    }
    for (int64_t i = 0; i < row_taps * size[0]; ++i) {
      check(view.row_source[i] >= 0 && view.row_source[i] < down * height, "upsample_accumulate: rows must be 0 to ",
            down * height - 1, ", got ", view.row_source[i]);
    }
    mosaic.views.push_back(std::move(view));
  }
  return mosaic;
}

Tables packed(const Tensor& logits, const Tensor& columns, const Tensor& column_weights, const Tensor& rows,
              const Tensor& row_weights) {
  using torch::stable::contiguous;
  return {contiguous(logits), contiguous(columns), contiguous(column_weights), contiguous(rows),
          contiguous(row_weights)};
}

Tensor upsample_accumulate(const Tensor logits, const Tensor columns, const Tensor column_weights, const Tensor rows,
                           const Tensor row_weights, HeaderOnlyArrayRef<int64_t> views, int64_t num_classes,
                           HeaderOnlyArrayRef<int64_t> size, bool probabilities) {
  const Tables tables = packed(logits, columns, column_weights, rows, row_weights);
  const Mosaic mosaic = mosaic_of(tables, views, num_classes, size, probabilities);
  Tensor out = torch::stable::new_empty(logits, {num_classes, size[0], size[1]}, ScalarType::Float);
  MosaicResult result;
  result.scores = static_cast<float*>(out.mutable_data_ptr());
  merge_mosaic(mosaic, result);
  return out;
}

std::tuple<Tensor, Tensor> upsample_accumulate_argmax(const Tensor logits, const Tensor columns,
                                                      const Tensor column_weights, const Tensor rows,
                                                      const Tensor row_weights, HeaderOnlyArrayRef<int64_t> views,
                                                      int64_t num_classes, HeaderOnlyArrayRef<int64_t> size,
                                                      bool probabilities, std::optional<Tensor> labels,
                                                      int64_t ignore_index) {
  const Tables tables = packed(logits, columns, column_weights, rows, row_weights);
  const Mosaic mosaic = mosaic_of(tables, views, num_classes, size, probabilities);
  const bool wide = num_classes > 256;
  Tensor out = torch::stable::new_empty(logits, {size[0], size[1]}, wide ? ScalarType::Short : ScalarType::Byte);
  const int64_t cells = labels.has_value() ? num_classes : 0;
  Tensor counts = torch::stable::new_zeros(logits, {cells, cells}, ScalarType::Long);
  std::optional<Tensor> packed_labels;
  MosaicResult result;
  if (wide) {
    result.wide_classes = static_cast<int16_t*>(out.mutable_data_ptr());
  } else {
    result.classes = static_cast<uint8_t*>(out.mutable_data_ptr());
  }
  if (labels.has_value()) {
    check(labels->scalar_type() == ScalarType::Byte && labels->dim() == 2 && labels->size(0) == size[0] &&
              labels->size(1) == size[1],
          "upsample_accumulate: labels must be uint8 of the size ", pair_text(size[0], size[1]));
    packed_labels = torch::stable::contiguous(*labels);
    result.labels = static_cast<const uint8_t*>(packed_labels->const_data_ptr());
    result.ignore_index = ignore_index;
    result.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  }
  merge_mosaic(mosaic, result);
  check(result.illegal_label < 0, "upsample_accumulate: every label must be 0 to ", num_classes - 1,
        " or the ignored label ", ignore_index, ", got ", result.illegal_label);
  return {out, counts};
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) {
  m.impl("upsample_accumulate", TORCH_BOX(&upsample_accumulate));
  m.impl("upsample_accumulate_argmax", TORCH_BOX(&upsample_accumulate_argmax));
}

}  // namespace
}  // namespace setr_fast
