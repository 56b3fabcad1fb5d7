// Signature of the CUDA upsample_argmax, shared by the kernel (no torch) and its registration (no kernel).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace setr_fast {

// Logits [batch, classes, height, width] in device memory, strides in elements.
struct SmallLogits {
  const void* data;
  bool bfloat16;
  int64_t batch, classes, height, width;
  int64_t batch_stride, class_stride, row_stride, column_stride;
};

// Writes the class of each pixel, [batch, rows, columns], of the logits upsampled to `size` and cut to rows x columns:
// uint8, or int16 where `wide`.
cudaError_t launch_upsample_argmax(const SmallLogits& logits, int64_t full_rows, int64_t full_columns, int64_t rows,
                                   int64_t columns, bool align_corners, void* out, bool wide, cudaStream_t stream);

}  // namespace setr_fast
