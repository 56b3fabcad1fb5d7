// Signature of the CUDA upsample_accumulate, shared by the kernel (no torch) and its registration (no kernel).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace setr_fast {

constexpr int kMostViews = 48;  // their facts travel as an argument of the kernel, of which there are 4 KiB

// One view: where its part of each flat table starts, and its geometry.
struct MosaicView {
  int64_t logits_at, columns_at, column_weights_at, rows_at;
  int down, across, height, width, column_taps, row_taps;
};

// Everything in device memory; the tables are those of setr_fast/ops/upsample_accumulate.py.
struct DeviceMosaic {
  const void* logits;
  bool bfloat16;
  const int32_t* columns;
  const float* column_weights;
  const int32_t* rows;
  const float* row_weights;
  int64_t classes, height, width;
  int views;
  bool probabilities;
  MosaicView view[kMostViews];
};

// What is wanted; pointers that are null are not.
struct DeviceMosaicResult {
  float* scores;               // [classes, height, width], or else
  uint8_t* classes;            // [height, width], or else
  int16_t* wide_classes;       // [height, width]; with either of them
  const uint8_t* labels;       // [height, width], and
  int64_t ignore_index;        //
  unsigned long long* counts;  // [classes, classes], added to, and
  long long* illegal_label;    // raised to the largest label that is neither a class nor ignored
};

cudaError_t launch_upsample_accumulate(const DeviceMosaic& mosaic, const DeviceMosaicResult& result,
                                       cudaStream_t stream);

}  // namespace setr_fast
