// The class of each pixel of logits that are bilinearly upsampled, without the upsampled logits: one view of one window
// for upsample_accumulate_core.cpp, which says how.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../bilinear.h"
#include "../checks.h"
#include "upsample_accumulate_core.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTaps = 2;

// Sources and weights of the first `count` positions of an axis, as a table of two neighbours: [count] and [2][count].
void fill_axis(int64_t in, int64_t out, int64_t count, bool align_corners, std::vector<int32_t>& start,
               std::vector<float>& weight) {
  const auto axis = make_axis<float>(in, out, align_corners);
  start.resize(count);
  weight.resize(kTaps * count);
  for (int64_t at = 0; at < count; ++at) {
    const auto mix = mix_at(axis, at);
    const float second = mix.high == mix.low ? 0.0f : mix.high_weight;
    start[at] = static_cast<int32_t>(mix.low);
    weight[at] = 1.0f - second;
    weight[count + at] = second;
  }
}

Tensor upsample_argmax(const Tensor logits, torch::headeronly::HeaderOnlyArrayRef<int64_t> size,
                       torch::headeronly::HeaderOnlyArrayRef<int64_t> crop, bool align_corners) {
  check(logits.dim() == 4, "upsample_argmax: logits must be [B, K, h, w], got ", logits.dim(), " dimensions");
  const bool bfloat16 = logits.scalar_type() == ScalarType::BFloat16;
  check(bfloat16 || logits.scalar_type() == ScalarType::Float, "upsample_argmax: logits must be float32 or bfloat16");
  check(size.size() == 2 && crop.size() == 2, "upsample_argmax: size and crop must be two numbers each");
  const int64_t batch = logits.size(0), classes = logits.size(1), height = logits.size(2), width = logits.size(3);
  const int64_t rows = crop[0], columns = crop[1];
  check(classes >= 1 && height >= 1 && width >= 1, "upsample_argmax: logits must have classes, rows and columns");
  check(rows >= 0 && columns >= 0 && rows <= size[0] && columns <= size[1],
        "upsample_argmax: crop must lie within the size ", pair_text(size[0], size[1]), ", got ",
        pair_text(rows, columns));
  const bool wide = classes > 256;
  Tensor out = torch::stable::new_empty(logits, {batch, rows, columns}, wide ? ScalarType::Short : ScalarType::Byte);
  std::vector<int32_t> column_start, first_row;
  std::vector<float> column_weight, weight;
  fill_axis(width, size[1], columns, align_corners, column_start, column_weight);
  fill_axis(height, size[0], rows, align_corners, first_row, weight);
  std::vector<int32_t> row_source(kTaps * rows);
  std::vector<float> row_weight(kTaps * rows);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      row_weight[row * kTaps + tap] = weight[tap * rows + row];
      row_source[row * kTaps + tap] = static_cast<int32_t>(std::min(first_row[row] + tap, height - 1));
    }
  }
  const int64_t step = bfloat16 ? 2 : 4;
  for (int64_t image = 0; image < batch; ++image) {
    const auto* data = static_cast<const char*>(logits.const_data_ptr()) + image * logits.stride(0) * step;
    const LogitsView view{{{data, logits.stride(1), logits.stride(2), logits.stride(3)}},
                          1,
                          height,
                          width,
                          column_start.data(),
                          column_weight.data(),
                          kTaps,
                          row_source.data(),
                          row_weight.data(),
                          kTaps};
    MosaicResult result;
    if (wide) {
      result.wide_classes = static_cast<int16_t*>(out.mutable_data_ptr()) + image * rows * columns;
    } else {
      result.classes = static_cast<uint8_t*>(out.mutable_data_ptr()) + image * rows * columns;
    }
    merge_mosaic({{view}, classes, rows, columns, bfloat16, false}, result);
  }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax)); }

}  // namespace
}  // namespace setr_fast
