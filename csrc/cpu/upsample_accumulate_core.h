// The arithmetic that upsample_argmax and upsample_accumulate share: pictures made of small logits, never of large
// ones.
//
// A view is a grid of windows, each with logits of a few rows and columns. Upsampling a window, cutting it to size,
// averaging where windows overlap, resizing to the picture and mirroring are all linear and separable, so together they
// are two sparse tables: which columns of which windows make an output column, and which rows an output row.
#pragma once

#include <cstdint>
#include <vector>

namespace setr_fast {

// Logits [classes, height, width] of one window, with strides in elements.
struct WindowLogits {
  const void* data;
  int64_t class_stride, row_stride, column_stride;
};

struct LogitsView {
  std::vector<WindowLogits> windows;  // row by row of the grid
  int64_t across;                     // windows in a row of the grid
  int64_t height, width;              // of every window's logits
  const int32_t* column_start;        // [across, columns]: the first column of a window that an output column reads
  const float* column_weight;         // [across, column_taps, columns]
  int64_t column_taps;
  const int32_t* row_source;  // [rows, row_taps]: grid row * height + row
  const float* row_weight;    // [rows, row_taps]
  int64_t row_taps;
};

struct Mosaic {
  std::vector<LogitsView> views;
  int64_t classes, rows, columns;
  bool bfloat16;
  bool probabilities;  // average softmax over the views, else the logits
};

// What is wanted; pointers that are null are not.
struct MosaicResult {
  float* scores = nullptr;     // [classes, rows, columns]
  uint8_t* classes = nullptr;  // [rows, columns], up to 256 classes
  int16_t* wide_classes = nullptr;
  const uint8_t* labels = nullptr;  // [rows, columns], with counts
  int64_t ignore_index = 255;
  int64_t* counts = nullptr;   // [classes, classes], added to
  int64_t illegal_label = -1;  // out: a label that is neither a class nor ignored
};

void merge_mosaic(const Mosaic& mosaic, MosaicResult& result);

}  // namespace setr_fast
