// Reading logits of windows: of either dtype, with whatever strides they come.
#pragma once

#include <cstdint>
#include <cstring>

#include "upsample_accumulate_core.h"

namespace setr_fast {

inline float widened(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

inline float value_of(const WindowLogits& window, bool bfloat16, int64_t at) {
  return bfloat16 ? widened(static_cast<const uint16_t*>(window.data)[at]) : static_cast<const float*>(window.data)[at];
}

// Asks for what a later class needs: classes often lie pages apart, where no processor looks ahead by itself.
inline void fetch(const WindowLogits& window, bool bfloat16, int64_t at, int64_t count) {
  if (window.column_stride != 1) return;
  const int64_t size = bfloat16 ? 2 : 4;
  const auto address = reinterpret_cast<uintptr_t>(window.data) + static_cast<uintptr_t>(at * size);
  for (int64_t offset = 0; offset < count * size; offset += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(offset)));
  }
}

inline void stage(const WindowLogits& window, bool bfloat16, int64_t at, int64_t count, float* to) {
  const int64_t step = window.column_stride;
  if (bfloat16) {
    const auto* from = static_cast<const uint16_t*>(window.data) + at;
    for (int64_t i = 0; i < count; ++i) to[i] = widened(from[i * step]);
    return;
  }
  const auto* from = static_cast<const float*>(window.data) + at;
  if (step == 1) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
  }
}

// One sum of a mosaic without vectors.
inline float value_at(const Mosaic& mosaic, int64_t k, int64_t row, int64_t column) {
  float total = 0.0f;
  for (const LogitsView& view : mosaic.views) {
    for (int64_t j = 0; j < view.row_taps; ++j) {
      const float row_weight = view.row_weight[row * view.row_taps + j];
      const int32_t source = view.row_source[row * view.row_taps + j];
      if (row_weight == 0.0f) continue;
      float sum = 0.0f;
      for (int64_t window = 0; window < view.across; ++window) {
        const WindowLogits& logits = view.windows[source / view.height * view.across + window];
        for (int64_t tap = 0; tap < view.column_taps; ++tap) {
          const float weight = view.column_weight[(window * view.column_taps + tap) * mosaic.columns + column];
          if (weight == 0.0f) continue;
          const int64_t at = view.column_start[window * mosaic.columns + column] + tap;
          sum += weight * value_of(logits, mosaic.bfloat16,
                                   k * logits.class_stride + source % view.height * logits.row_stride +
                                       at * logits.column_stride);
        }
      }
      total += row_weight * sum;
    }
  }
  return total;
}

}  // namespace setr_fast
