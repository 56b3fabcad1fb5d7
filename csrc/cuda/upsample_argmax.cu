// The class of each pixel of bilinearly upsampled logits on a GPU. UNMEASURED: the tests run its threads on a CPU, no
// GPU has run it yet.
//
// A thread decides kRows pixels of one column, one below the other: at upsampling factors of two and more they mostly
// share their four source values, which the first-level cache then serves; the largest value and its class stay in
// registers. Neighbouring threads have neighbouring columns, so that a warp's loads fall into a few sectors when
// columns are contiguous. Bound by instructions (per class and pixel about ten), not by bytes: what is read is the
// small logits.
#include <cuda_bf16.h>

#include "../bilinear.h"
#include "upsample_argmax.h"

namespace setr_fast {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 4;

__device__ __forceinline__ float value_of(const float* at) { return __ldg(at); }
__device__ __forceinline__ float value_of(const __nv_bfloat16* at) { return __bfloat162float(*at); }

// A NaN is the largest, and the first of equal values stays, as in torch.
__device__ __forceinline__ bool beats(float value, float best) {
  return value > best || (value != value && best == best);
}

template <class T, class Class>
__global__ void __launch_bounds__(kThreads)
    upsample_argmax_kernel(SmallLogits logits, Axis<float> vertical, Axis<float> horizontal, int64_t rows,
                           int64_t columns,
                           Class* __restrict__ out) {  // [batch, rows, columns]
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
  if (column >= columns) return;
  const Mix<float> across = mix_at(horizontal, column);
  const auto* data = static_cast<const T*>(logits.data) + blockIdx.z * logits.batch_stride;
  const T* left = data + across.low * logits.column_stride;
  const T* right = data + across.high * logits.column_stride;
  int64_t low[kRows], high[kRows];
  float weight[kRows], best[kRows];
  int index[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const Mix<float> down = mix_at(vertical, first + row < rows ? first + row : rows - 1);
    low[row] = down.low * logits.row_stride;
    high[row] = down.high * logits.row_stride;
    weight[row] = down.high_weight;
    index[row] = 0;
  }
  for (int k = 0; k < static_cast<int>(logits.classes); ++k) {
    const int64_t at = k * logits.class_stride;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      // Taps of weight 0 are not read into the sum: an infinity beside the pixel must not become a NaN in it.
      const auto across_row = [&](int64_t offset) {
        const float value = (1.0f - across.high_weight) * value_of(left + at + offset);
        return across.high_weight == 0.0f ? value : fmaf(across.high_weight, value_of(right + at + offset), value);
      };
      float value = (1.0f - weight[row]) * across_row(low[row]);
      if (weight[row] != 0.0f) value = fmaf(weight[row], across_row(high[row]), value);
      if (k == 0 || beats(value, best[row])) {
        best[row] = value;
        index[row] = k;
      }
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (first + row < rows) {
      out[(blockIdx.z * rows + first + row) * columns + column] = static_cast<Class>(index[row]);
    }
  }
}

template <class T, class Class>
cudaError_t launch(const SmallLogits& logits, int64_t full_rows, int64_t full_columns, int64_t rows, int64_t columns,
                   bool align_corners, void* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned int>((columns + kThreads - 1) / kThreads),
                  static_cast<unsigned int>((rows + kRows - 1) / kRows), static_cast<unsigned int>(logits.batch));
  upsample_argmax_kernel<T, Class><<<grid, kThreads, 0, stream>>>(
      logits, make_axis<float>(logits.height, full_rows, align_corners),
      make_axis<float>(logits.width, full_columns, align_corners), rows, columns, static_cast<Class*>(out));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_upsample_argmax(const SmallLogits& logits, int64_t full_rows, int64_t full_columns, int64_t rows,
                                   int64_t columns, bool align_corners, void* out, bool wide, cudaStream_t stream) {
  if (logits.batch == 0 || rows == 0 || columns == 0) return cudaSuccess;
  const auto run = logits.bfloat16 ? (wide ? launch<__nv_bfloat16, int16_t> : launch<__nv_bfloat16, uint8_t>)
                                   : (wide ? launch<float, int16_t> : launch<float, uint8_t>);
  return run(logits, full_rows, full_columns, rows, columns, align_corners, out, stream);
}

}  // namespace setr_fast
