// Registers the CUDA upsample_accumulate: checks, stream, launch, and the error for an illegal label. UNMEASURED, see
// the .cu.
#include "upsample_accumulate.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../checks.h"
#include "stream.h"

namespace setr_fast {
namespace {

using torch::headeronly::HeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr size_t kFacts = 6;  // windows down and across, height, width, column taps, row taps
constexpr int64_t kMostInGrid = 1 << 15;

// The flat tables, kept packed while a call lasts.
struct Tables {
  Tensor logits, columns, column_weights, rows, row_weights;
};

Tables packed(const Tensor& logits, const Tensor& columns, const Tensor& column_weights, const Tensor& rows,
              const Tensor& row_weights) {
  using torch::stable::contiguous;
  check(columns.scalar_type() == ScalarType::Int && rows.scalar_type() == ScalarType::Int,
        "upsample_accumulate: columns and rows must be int32");
  check(column_weights.scalar_type() == ScalarType::Float && row_weights.scalar_type() == ScalarType::Float,
        "upsample_accumulate: weights must be float32");
  for (const Tensor* table : {&columns, &column_weights, &rows, &row_weights}) {
    check(table->get_device() == logits.get_device(), "upsample_accumulate: tables must be on the device of logits");
  }
  return {contiguous(logits), contiguous(columns), contiguous(column_weights), contiguous(rows),
          contiguous(row_weights)};
}

DeviceMosaic mosaic_of(const Tables& tables, HeaderOnlyArrayRef<int64_t> facts, int64_t classes,
                       HeaderOnlyArrayRef<int64_t> size, bool probabilities) {
  check(facts.size() >= kFacts && facts.size() % kFacts == 0 && facts.size() <= kFacts * kMostViews,
        "upsample_accumulate: views must be six numbers each, at most ", kMostViews, " times, got ", facts.size());
  check(size.size() == 2 && size[0] >= 0 && size[1] >= 0, "upsample_accumulate: size must be two numbers");
  check(classes >= 1, "upsample_accumulate: num_classes must be positive, got ", classes);
  const bool bfloat16 = tables.logits.scalar_type() == ScalarType::BFloat16;
  check(bfloat16 || tables.logits.scalar_type() == ScalarType::Float,
        "upsample_accumulate: logits must be float32 or bfloat16");
  DeviceMosaic mosaic{tables.logits.const_data_ptr(),
                      bfloat16,
                      static_cast<const int32_t*>(tables.columns.const_data_ptr()),
                      static_cast<const float*>(tables.column_weights.const_data_ptr()),
                      static_cast<const int32_t*>(tables.rows.const_data_ptr()),
                      static_cast<const float*>(tables.row_weights.const_data_ptr()),
                      classes,
                      size[0],
                      size[1],
                      static_cast<int>(facts.size() / kFacts),
                      probabilities,
                      {}};
  int64_t values = 0, starts = 0, start_weights = 0, sources = 0;
  for (int v = 0; v < mosaic.views; ++v) {
    const int64_t* fact = &facts[v * kFacts];
    for (size_t i = 0; i < kFacts; ++i) {
      check(fact[i] >= 1 && fact[i] < kMostInGrid, "upsample_accumulate: every number of views must be 1 to ",
            kMostInGrid - 1, ", got ", fact[i]);
    }
    const int64_t down = fact[0], across = fact[1], height = fact[2], width = fact[3];
    mosaic.view[v] = {values,
                      starts,
                      start_weights,
                      sources,
                      static_cast<int>(down),
                      static_cast<int>(across),
                      static_cast<int>(height),
                      static_cast<int>(width),
                      static_cast<int>(fact[4]),
                      static_cast<int>(fact[5])};
    values += down * across * classes * height * width;
    starts += across * size[1];
    start_weights += across * fact[4] * size[1];
    sources += fact[5] * size[0];
  }
  check(values <= tables.logits.numel() && starts <= tables.columns.numel() &&
            start_weights <= tables.column_weights.numel() && sources <= tables.rows.numel() &&
            sources <= tables.row_weights.numel(),
        "upsample_accumulate: logits and tables must be as long as views say");
  return mosaic;
}

Tensor upsample_accumulate(const Tensor logits, const Tensor columns, const Tensor column_weights, const Tensor rows,
                           const Tensor row_weights, HeaderOnlyArrayRef<int64_t> views, int64_t num_classes,
                           HeaderOnlyArrayRef<int64_t> size, bool probabilities) {
  const Tables tables = packed(logits, columns, column_weights, rows, row_weights);
  const DeviceMosaic mosaic = mosaic_of(tables, views, num_classes, size, probabilities);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device());
  Tensor out = torch::stable::new_empty(logits, {num_classes, size[0], size[1]}, ScalarType::Float);
  DeviceMosaicResult result{};
  result.scores = static_cast<float*>(out.mutable_data_ptr());
  cuda_check("upsample_accumulate", launch_upsample_accumulate(mosaic, result, current_stream(logits.get_device())));
  return out;
}

std::tuple<Tensor, Tensor> upsample_accumulate_argmax(const Tensor logits, const Tensor columns,
                                                      const Tensor column_weights, const Tensor rows,
                                                      const Tensor row_weights, HeaderOnlyArrayRef<int64_t> views,
                                                      int64_t num_classes, HeaderOnlyArrayRef<int64_t> size,
                                                      bool probabilities, std::optional<Tensor> labels,
                                                      int64_t ignore_index) {
  const Tables tables = packed(logits, columns, column_weights, rows, row_weights);
  // Of a single view the logits decide.
  const DeviceMosaic mosaic = mosaic_of(tables, views, num_classes, size, probabilities && views.size() > kFacts);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device());
  const cudaStream_t stream = current_stream(logits.get_device());
  const bool wide = num_classes > 256;
  Tensor out = torch::stable::new_empty(logits, {size[0], size[1]}, wide ? ScalarType::Short : ScalarType::Byte);
  const int64_t cells = labels.has_value() ? num_classes : 0;
  const Tensor counts = torch::stable::new_zeros(logits, {cells, cells}, ScalarType::Long);
  DeviceMosaicResult result{};
  if (wide) {
    result.wide_classes = static_cast<int16_t*>(out.mutable_data_ptr());
  } else {
    result.classes = static_cast<uint8_t*>(out.mutable_data_ptr());
  }
  if (!labels.has_value()) {
    cuda_check("upsample_accumulate", launch_upsample_accumulate(mosaic, result, stream));
    return {out, counts};
  }
  check(labels->scalar_type() == ScalarType::Byte && labels->dim() == 2 && labels->size(0) == size[0] &&
            labels->size(1) == size[1] && labels->get_device() == logits.get_device(),
        "upsample_accumulate: labels must be uint8 of the size ", pair_text(size[0], size[1]));
  const Tensor packed_labels = torch::stable::contiguous(*labels);
  const Tensor illegal = torch::stable::new_zeros(logits, {1}, ScalarType::Long);
  result.labels = static_cast<const uint8_t*>(packed_labels.const_data_ptr());
  result.ignore_index = ignore_index;
  result.counts = static_cast<unsigned long long*>(counts.mutable_data_ptr());
  result.illegal_label = static_cast<long long*>(illegal.mutable_data_ptr());
  cuda_check("upsample_accumulate", launch_upsample_accumulate(mosaic, result, stream));
  // The copy waits for the kernel: an illegal label must be this call's error. A label of 0 is always legal.
  long long found = 0;
  cuda_check("upsample_accumulate",
             cudaMemcpyAsync(&found, illegal.const_data_ptr(), sizeof(found), cudaMemcpyDeviceToHost, stream));
  cuda_check("upsample_accumulate", cudaStreamSynchronize(stream));
  check(found == 0, "upsample_accumulate: every label must be 0 to ", num_classes - 1, " or the ignored label ",
        ignore_index, ", got ", found);
  return {out, counts};
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CUDA, m) {
  m.impl("upsample_accumulate", TORCH_BOX(&upsample_accumulate));
  m.impl("upsample_accumulate_argmax", TORCH_BOX(&upsample_accumulate_argmax));
}

}  // namespace
}  // namespace setr_fast
