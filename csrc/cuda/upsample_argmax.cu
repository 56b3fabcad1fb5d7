// The class of each pixel of bilinearly upsampled logits on a GPU. UNMEASURED: the tests run its threads on a CPU, no
// GPU has run it yet.
//
// A block decides kRows x kThreads pixels, kChunk classes at a time: it brings their small logits into shared memory as
// float32, in the order in which they lie (classes or columns next to each other), then every thread walks down kRows
// pixels of one column with two mixed rows of kMixed classes, the largest value and its class of each pixel in
// registers. A row is mixed along x once for all the pixels that it lies beside. Where a value is not finite, or a
// block's pixels need more small logits than fit (enlarging by less than two), pixels are decided one by one.
// Bound by instructions: 11 per class and pixel at a factor of two, and 7 for bringing logits in.
// docs/design/0011-what-the-machine-code-allows.md
#include <cuda_bf16.h>

#include <cfloat>
#include <climits>

#include "../bilinear.h"
#include "upsample_argmax.h"

namespace setr_fast {
namespace {

using Axis32 = Axis<float, int32_t>;
using Mix32 = Mix<float, int32_t>;

constexpr int kThreads = 128;
constexpr int kRows = 8;
constexpr int kChunk = 16;   // classes: 32 bytes of bfloat16, the least that is read from memory
constexpr int kMixed = 8;    // of them that a thread holds two rows of
constexpr int kPlane = 419;  // small pixels of a block: 6 x 66 at a factor of two; odd, so that classes differ in bank
constexpr int kSharedBytes = (kChunk * kPlane + 1) * static_cast<int>(sizeof(float));

__device__ __forceinline__ float value_of(const float* at) { return __ldg(at); }
__device__ __forceinline__ float value_of(const __nv_bfloat16* at) { return __bfloat162float(*at); }

// A NaN is the largest, and the first of equal values stays, as in torch.
__device__ __forceinline__ bool beats(float value, float best) {
  return value > best || (value != value && best == best);
}

// Where the classes go: of one byte, or of two where there are more than 256.
struct Classes {
  void* data;
  bool wide;

  __device__ __forceinline__ void write(int64_t pixel, int index) const {
    if (wide) {
      static_cast<int16_t*>(data)[pixel] = static_cast<int16_t>(index);
    } else {
      static_cast<uint8_t*>(data)[pixel] = static_cast<uint8_t>(index);
    }
  }
};

// The class of one pixel. Taps of weight 0 are not read into the sum: an infinity beside the pixel must not become a
// NaN in it.
template <class T>
__device__ __forceinline__ int decided(const SmallLogits& logits, const T* data, const Mix32& down,
                                       const Mix32& across) {
  const T* upper = data + down.low * logits.row_stride;
  const T* lower = data + down.high * logits.row_stride;
  const int64_t left = across.low * logits.column_stride, right = across.high * logits.column_stride;
  const auto across_row = [&](const T* row) {
    const float value = (1.0f - across.high_weight) * value_of(row + left);
    return across.high_weight == 0.0f ? value : fmaf(across.high_weight, value_of(row + right), value);
  };
  float best = 0.0f;
  int index = 0;
#pragma unroll 1
  for (int k = 0; k < static_cast<int>(logits.classes); ++k) {
    const int64_t at = k * logits.class_stride;
    float value = (1.0f - down.high_weight) * across_row(upper + at);
    if (down.high_weight != 0.0f) value = fmaf(down.high_weight, across_row(lower + at), value);
    if (k == 0 || beats(value, best)) {
      best = value;
      index = k;
    }
  }
  return index;
}

// The small pixels that a block's pixels lie between.
struct Tile {
  int32_t top, left, height, width;
};

// Copies a class of a column of small pixels, which lie `step` apart, to places `apart` from each other; adds zero
// times each to `finite`. Six loads at once: the rows of a tile at a factor of two.
template <class T>
__device__ __forceinline__ void copy(const T* from, int64_t step, float* to, int apart, int count, float& finite) {
#pragma unroll 6
  for (int i = 0; i < count; ++i, from += step, to += apart) {
    const float value = value_of(from);
    finite = fmaf(value, 0.0f, finite);
    *to = value;
  }
}

// Brings classes [0, count) from `data` on to [kChunk, kPlane], and -infinity for the others, which no class is below.
// Returns whether all that this thread brought is finite.
template <bool kClassesTogether, class T>
__device__ __forceinline__ bool bring(const SmallLogits& logits, const T* data, const Tile& tile, int count,
                                      float* to) {
  constexpr int kTogether = kClassesTogether ? kChunk : 32, kTurns = kThreads / kTogether;
  const int lane = threadIdx.x % kTogether, turn = threadIdx.x / kTogether;
  const T* corner = data + tile.top * logits.row_stride + tile.left * logits.column_stride;
  float finite = 0.0f;
  for (int k = kClassesTogether ? lane : turn; k < kChunk; k += kClassesTogether ? kChunk : kTurns) {
    for (int column = kClassesTogether ? turn : lane; column < tile.width;
         column += kClassesTogether ? kTurns : kTogether) {
      float* plane = to + k * kPlane + column;
      if (k < count) {
        copy(corner + k * logits.class_stride + column * logits.column_stride, logits.row_stride, plane, tile.width,
             tile.height, finite);
      } else {
        for (int row = 0; row < tile.height; ++row) plane[row * tile.width] = -INFINITY;
      }
    }
  }
  return finite == 0.0f;
}

// A row of the tile, kMixed classes, mixed along x.
__device__ __forceinline__ void mix_row(const float* row, int left, int right, float weight, float (&to)[kMixed]) {
#pragma unroll
  for (int k = 0; k < kMixed; ++k) {
    to[k] = fmaf(weight, row[k * kPlane + right], (1.0f - weight) * row[k * kPlane + left]);
  }
}

template <class T, bool kClassesTogether>
__global__ void __launch_bounds__(kThreads)
    upsample_argmax_kernel(SmallLogits logits, Axis32 vertical, Axis32 horizontal, int32_t rows, int32_t columns,
                           Classes out) {  // [batch, rows, columns]
  extern __shared__ float memory[];        // [kChunk, kPlane], then whether pixels go one by one
  auto* one_by_one = reinterpret_cast<int*>(memory + kChunk * kPlane);
  const auto* data = static_cast<const T*>(logits.data) + blockIdx.z * logits.batch_stride;
  const int32_t begin = static_cast<int32_t>(blockIdx.y) * kRows,
                of_block = static_cast<int32_t>(blockIdx.x) * kThreads;
  const int32_t column = of_block + static_cast<int32_t>(threadIdx.x);
  const auto row_at = [&](int row) { return mix_at(vertical, begin + row < rows ? begin + row : rows - 1); };
  const auto column_at = [&](int32_t at) { return mix_at(horizontal, at < columns ? at : columns - 1); };
  const Mix32 across = column_at(column);
  Tile tile{row_at(0).low, column_at(of_block).low, 0, 0};
  tile.height = row_at(kRows - 1).high - tile.top + 1;
  tile.width = column_at(of_block + kThreads - 1).high - tile.left + 1;
  const bool fits = int64_t{tile.height} * tile.width <= kPlane;
  if (threadIdx.x == 0) *one_by_one = !fits;
  float best[kRows], weight[kRows];
  int index[kRows], upper_at[kRows], lower_at[kRows];  // where in a plane the row above and the one below start
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const Mix32 down = row_at(row);
    best[row] = -INFINITY;
    index[row] = 0;
    weight[row] = down.high_weight;
    upper_at[row] = (down.low - tile.top) * tile.width;
    lower_at[row] = (down.high - tile.top) * tile.width;
  }
  const int left = across.low - tile.left, right = across.high - tile.left;
  const int classes = fits ? static_cast<int>(logits.classes) : 0;
  for (int first = 0; first < classes; first += kChunk) {
    __syncthreads();  // everyone is done with the classes before
    const int count = classes - first < kChunk ? classes - first : kChunk;
    if (!bring<kClassesTogether>(logits, data + first * logits.class_stride, tile, count, memory)) *one_by_one = 1;
    __syncthreads();
#pragma unroll 1
    for (int part = 0; part < count; part += kMixed) {
      const float* planes = memory + part * kPlane;
      float upper[kMixed], lower[kMixed];
      int in_upper = -1, in_lower = -1;
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        // A block's rows are the same for all of its threads. A row that was below the pixel above may be above now.
        if (upper_at[row] != in_upper) {
          if (upper_at[row] == in_lower) {
#pragma unroll
            for (int k = 0; k < kMixed; ++k) upper[k] = lower[k];
          } else {
            mix_row(planes + upper_at[row], left, right, across.high_weight, upper);
          }
          in_upper = upper_at[row];
        }
        if (lower_at[row] != in_lower) {
          mix_row(planes + lower_at[row], left, right, across.high_weight, lower);
          in_lower = lower_at[row];
        }
#pragma unroll
        for (int k = 0; k < kMixed; ++k) {
          const float value = fmaf(weight[row], lower[k], (1.0f - weight[row]) * upper[k]);
          if (value > best[row]) {
            best[row] = value;
            index[row] = first + part + k;
          }
        }
      }
    }
  }
  __syncthreads();
  if (column >= columns) return;
  const int64_t pixel = (int64_t{blockIdx.z} * rows + begin) * columns + column;
  if (*one_by_one == 0) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (begin + row < rows) out.write(pixel + int64_t{row} * columns, index[row]);
    }
    return;
  }
#pragma unroll 1
  for (int row = 0; row < kRows && begin + row < rows; ++row) {
    out.write(pixel + int64_t{row} * columns, decided(logits, data, row_at(row), across));
  }
}

template <class T>
cudaError_t launch(const SmallLogits& logits, int64_t full_rows, int64_t full_columns, int64_t rows, int64_t columns,
                   bool align_corners, const Classes& out, cudaStream_t stream) {
  if (full_rows > INT_MAX - kRows || full_columns > INT_MAX - kThreads) return cudaErrorInvalidValue;
  if (logits.height > INT_MAX || logits.width > INT_MAX) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned int>((columns + kThreads - 1) / kThreads),
                  static_cast<unsigned int>((rows + kRows - 1) / kRows), static_cast<unsigned int>(logits.batch));
  const auto kernel =
      logits.class_stride < logits.column_stride ? upsample_argmax_kernel<T, true> : upsample_argmax_kernel<T, false>;
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(
      logits, narrowed(make_axis<float>(logits.height, full_rows, align_corners)),
      narrowed(make_axis<float>(logits.width, full_columns, align_corners)), static_cast<int32_t>(rows),
      static_cast<int32_t>(columns), out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_upsample_argmax(const SmallLogits& logits, int64_t full_rows, int64_t full_columns, int64_t rows,
                                   int64_t columns, bool align_corners, void* out, bool wide, cudaStream_t stream) {
  if (logits.batch == 0 || rows == 0 || columns == 0) return cudaSuccess;
  const Classes classes{out, wide};
  const auto run = logits.bfloat16 ? launch<__nv_bfloat16> : launch<float>;
  return run(logits, full_rows, full_columns, rows, columns, align_corners, classes, stream);
}

}  // namespace setr_fast
