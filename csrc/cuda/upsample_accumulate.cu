// Scores or classes of a picture from the small logits of all its windows and views. UNMEASURED: the tests run its
// threads on a CPU, no GPU has run it yet.
//
// A thread owns one output pixel. It reads the small logits of every view twice: once for the largest value and the sum
// of the exponentials, once for the mean over the views, kClasses classes at a time, with the largest score and its
// class in registers. So nothing of the picture's size but the result is ever written, and no two threads add up
// anything. Neighbouring threads have neighbouring columns: their loads are next to each other, and at upsampling
// factors of two and more mostly the same. Bound by instructions: about 70 per class, pixel, view and pass where two
// rows and two columns are mixed, half of them for the tables. docs/design/0008-inference-from-small-logits.md
#include <cuda_bf16.h>

#include <climits>

#include "count_together.h"
#include "upsample_accumulate.h"

namespace setr_fast {
namespace {

constexpr int kMostThreads = 128;
constexpr int kBlocks = 4;                     // per multiprocessor: as many as registers allow without a spill
constexpr int kClasses = 16;                   // that share the reads of the tables
constexpr float kLog2E = 1.4426950408889634f;  // scores of probabilities are kept in base two
constexpr int kBytesPerPixelAndView = 12;      // in shared memory: largest value, factor, first and last window
constexpr size_t kSharedBytes = 48 * 1024;     // what every card grants without opting in

__device__ __forceinline__ float value_of(const float* at) { return __ldg(at); }
__device__ __forceinline__ float value_of(const __nv_bfloat16* at) { return __bfloat162float(*at); }

// The windows of a row of the grid that an output column reads, [begin, end).
struct Windows {
  int begin, end;
};

__device__ __forceinline__ Windows windows_of(const DeviceMosaic& mosaic, const MosaicView& view, int64_t column) {
  Windows found{view.across, 0};
  for (int b = 0; b < view.across; ++b) {
    for (int s = 0; s < view.column_taps; ++s) {
      const int64_t at = view.column_weights_at + (int64_t{b} * view.column_taps + s) * mosaic.width + column;
      if (mosaic.column_weights[at] == 0.0f) continue;
      found.begin = b < found.begin ? b : found.begin;
      found.end = b + 1;
    }
  }
  return found;
}

// The logits, times `factor`, of kClasses classes from `first` on of one view at one output pixel. Those beyond the
// last class are the last one's again: to leave them out would cost a comparison each, for every tap.
template <class T>
__device__ __forceinline__ void logits_at(const DeviceMosaic& mosaic, const MosaicView& view, Windows windows,
                                          int64_t row, int64_t column, int first, float factor,
                                          float (&values)[kClasses]) {
  int class_at[kClasses];  // values from where a window's line of the class `first` starts
#pragma unroll
  for (int i = 0; i < kClasses; ++i) {
    values[i] = 0.0f;
    class_at[i] = (first + i < mosaic.classes ? i : static_cast<int>(mosaic.classes) - 1 - first) * view.width;
  }
  for (int t = 0; t < view.row_taps; ++t) {
    const int64_t tap = view.rows_at + row * view.row_taps + t;
    const float down = mosaic.row_weights[tap] * factor;
    if (down == 0.0f) continue;
    const int source = mosaic.rows[tap];
    // What a wrong table points at is not read: only weights of 0 may point beyond the windows.
    if (static_cast<unsigned int>(source) >= static_cast<unsigned int>(view.down * view.height)) continue;
    const int grid_row = source / view.height, line = source - grid_row * view.height;
    for (int b = windows.begin; b < windows.end; ++b) {
      const int start = mosaic.columns[view.columns_at + b * mosaic.width + column];
      const int64_t window = (int64_t{grid_row} * view.across + b) * view.height + line;
      const auto* from = static_cast<const T*>(mosaic.logits) + view.logits_at +
                         (window * mosaic.classes + first) * view.width + start;
      const float* weights =
          mosaic.column_weights + view.column_weights_at + int64_t{b} * view.column_taps * mosaic.width + column;
      for (int s = 0; s < view.column_taps; ++s, weights += mosaic.width, ++from) {
        const float weight = down * *weights;
        if (weight == 0.0f || static_cast<unsigned int>(start + s) >= static_cast<unsigned int>(view.width)) continue;
#pragma unroll
        for (int i = 0; i < kClasses; ++i) values[i] = fmaf(weight, value_of(from + class_at[i]), values[i]);
      }
    }
  }
}

// What a thread keeps of each view between the two passes, in shared memory.
struct Kept {
  float* top;     // [views, threads]
  float* factor;  // [views, threads]: 1 / (sum of exponentials * views)
  int* windows;   // [views, threads]: begin, and end in the upper 16 bits

  __device__ __forceinline__ int at(int view) const {
    return view * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  __device__ __forceinline__ Windows of(int view) const {
    return {windows[at(view)] & 0xffff, windows[at(view)] >> 16};
  }
};

template <class T>
__device__ __forceinline__ void prepare(const DeviceMosaic& mosaic, const Kept& kept, int v, int64_t row,
                                        int64_t column) {
  const MosaicView& view = mosaic.view[v];
  const Windows windows = windows_of(mosaic, view, column);
  kept.windows[kept.at(v)] = windows.begin | windows.end << 16;
  if (!mosaic.probabilities) return;
  float top = -INFINITY, sum = 0.0f, values[kClasses];
  for (int first = 0; first < mosaic.classes; first += kClasses) {
    logits_at<T>(mosaic, view, windows, row, column, first, kLog2E, values);
    float higher = top;
#pragma unroll
    for (int i = 0; i < kClasses; ++i) higher = fmaxf(higher, values[i]);
    sum *= exp2f(top - higher);
    top = higher;
#pragma unroll
    for (int i = 0; i < kClasses; ++i) {
      if (first + i < mosaic.classes) sum += exp2f(values[i] - top);
    }
  }
  kept.top[kept.at(v)] = top;
  kept.factor[kept.at(v)] = 1.0f / (sum * static_cast<float>(mosaic.views));
}

__device__ __forceinline__ void write_class(const DeviceMosaicResult& result, int64_t pixel, int best) {
  if (result.classes != nullptr) {
    result.classes[pixel] = static_cast<uint8_t>(best);
  } else {
    result.wide_classes[pixel] = static_cast<int16_t>(best);
  }
}

// Where a pixel of class `best` counts, label * classes + best; -1 where it does not. An illegal label is noted.
__device__ __forceinline__ int cell_of(const DeviceMosaic& mosaic, const DeviceMosaicResult& result, int64_t pixel,
                                       int best) {
  const int64_t label = result.labels[pixel];
  if (label == result.ignore_index) return -1;
  if (label < mosaic.classes) return static_cast<int>(label * mosaic.classes) + best;
  atomicMax(result.illegal_label, static_cast<long long>(label));
  return -1;
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, kBlocks)
    upsample_accumulate_kernel(const __grid_constant__ DeviceMosaic mosaic, DeviceMosaicResult result, int64_t tiles) {
  extern __shared__ float memory[];
  const int entries = mosaic.views * static_cast<int>(blockDim.x);
  const Kept kept{memory, memory + entries, reinterpret_cast<int*>(memory + 2 * entries)};
  const int64_t row = blockIdx.x / tiles;
  // Threads beyond the last column decide it too and write nothing: a warp counts together, with all its lanes. There
  // is no barrier below: a thread reads what it wrote.
  const int64_t wanted = blockIdx.x % tiles * blockDim.x + threadIdx.x;
  const bool inside = wanted < mosaic.width;
  const int64_t column = inside ? wanted : mosaic.width - 1;
  for (int v = 0; v < mosaic.views; ++v) prepare<T>(mosaic, kept, v, row, column);
  float best = 0.0f;
  int best_class = 0;
  const int64_t pixel = row * mosaic.width + column;
  const float share = 1.0f / static_cast<float>(mosaic.views);
  for (int first = 0; first < mosaic.classes; first += kClasses) {
    float total[kClasses], values[kClasses];
#pragma unroll
    for (int i = 0; i < kClasses; ++i) total[i] = 0.0f;
    for (int v = 0; v < mosaic.views; ++v) {
      logits_at<T>(mosaic, mosaic.view[v], kept.of(v), row, column, first, mosaic.probabilities ? kLog2E : 1.0f,
                   values);
      const float top = mosaic.probabilities ? kept.top[kept.at(v)] : 0.0f;
      const float factor = mosaic.probabilities ? kept.factor[kept.at(v)] : share;
#pragma unroll
      for (int i = 0; i < kClasses; ++i) {
        total[i] = fmaf(mosaic.probabilities ? exp2f(values[i] - top) : values[i], factor, total[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kClasses; ++i) {
      if (first + i >= mosaic.classes) continue;
      if (result.scores != nullptr) {
        if (inside) result.scores[(first + i) * mosaic.height * mosaic.width + pixel] = total[i];
      } else if (first + i == 0 || total[i] > best) {
        best = total[i];
        best_class = first + i;
      }
    }
  }
  if (result.scores != nullptr) return;
  if (inside) write_class(result, pixel, best_class);
  if (result.labels != nullptr) {
    count_together(result.counts, inside ? cell_of(mosaic, result, pixel, best_class) : -1);
  }
}

template <class T>
cudaError_t launch(const DeviceMosaic& mosaic, const DeviceMosaicResult& result, cudaStream_t stream) {
  int threads = kMostThreads;
  while (size_t{1} * threads * mosaic.views * kBytesPerPixelAndView > kSharedBytes) threads /= 2;
  const int64_t tiles = (mosaic.width + threads - 1) / threads;
  const int64_t blocks = tiles * mosaic.height;
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  const size_t bytes = size_t{1} * threads * mosaic.views * kBytesPerPixelAndView;
  upsample_accumulate_kernel<T><<<static_cast<unsigned int>(blocks), threads, bytes, stream>>>(mosaic, result, tiles);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_upsample_accumulate(const DeviceMosaic& mosaic, const DeviceMosaicResult& result,
                                       cudaStream_t stream) {
  if (mosaic.height == 0 || mosaic.width == 0) return cudaSuccess;
  if (mosaic.views < 1 || mosaic.views > kMostViews) return cudaErrorInvalidValue;
  return mosaic.bfloat16 ? launch<__nv_bfloat16>(mosaic, result, stream) : launch<float>(mosaic, result, stream);
}

}  // namespace setr_fast
