// Combines tap maps of low resolution into a convolution of the upsampled map, and gathers the gradient of the tap
// maps. UNMEASURED: the tests run its threads on a CPU, no GPU has run it yet.
//
// Forward: a thread owns 8 channels of one output column and walks down kRows pixels of it (csrc/upsample_combine.h);
// neighbouring threads own neighbouring channels, then neighbouring columns, so every access is 16 bytes and a block's
// columns find each other's source columns in L1. At a factor of two a pixel costs 9 loads of 16 bytes and 15
// multiply-adds per channel. Backward: a thread owns 8 channels of one low-resolution pixel and all taps; 36 loads at a
// factor of two. Bound by bytes: z once, y once. docs/design/0005-upsample-conv.md
#include <climits>

#include "upsample_conv.h"
#include "upsample_conv_memory.h"

namespace setr_fast {
namespace {

constexpr int kThreads = 128;
template <int kSide>
constexpr int kBlocks = kSide == 3 ? 3 : 7;  // per multiprocessor: as many as registers allow without a spill

template <class T, bool kWhole>
struct BackwardMemory {
  const T* __restrict__ grad;
  T* __restrict__ z;
  int64_t channels;

  __device__ __forceinline__ Lanes load_y(int64_t pixel, int64_t channel) const {
    if constexpr (kWhole) {
      return load(grad + pixel + channel);
    } else {
      Lanes lanes;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) lanes.of[i] = channel + i < channels ? wide(grad[pixel + channel + i]) : 0.0f;
      return lanes;
    }
  }
  __device__ __forceinline__ void store_z(int64_t offset, const Lanes& lanes) const { store(z + offset, lanes); }
};

template <class T, int kSide, bool kWhole>
__global__ void __launch_bounds__(kThreads, kBlocks<kSide>)
    upsample_combine_kernel(TapShape shape, int64_t threads, const T* __restrict__ z, const T* __restrict__ bias,
                            bool relu, T* __restrict__ y) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= threads) return;
  combine_strip<kSide>(shape, ForwardMemory<T, kWhole>{z, y, bias, shape.channels, relu}, index);
}

template <class T, int kSide, bool kWhole>
__global__ void __launch_bounds__(kThreads, kBlocks<kSide>)
    upsample_combine_backward_kernel(TapShape shape, int64_t threads, const T* __restrict__ grad, T* __restrict__ z) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= threads) return;
  combine_backward_pixel<kSide>(shape, BackwardMemory<T, kWhole>{grad, z, shape.channels}, index);
}

// Calls `run(threads, blocks)` unless there is nothing to do.
template <class Run>
cudaError_t in_blocks(int64_t threads, const Run& run) {
  if (threads == 0) return cudaSuccess;
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  run(threads, static_cast<unsigned int>(blocks));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_upsample_combine(MapType type, int side, const TapShape& shape, const void* z, const void* bias,
                                    bool relu, void* y, cudaStream_t stream) {
  if (!addressable(shape, side)) return cudaErrorInvalidValue;
  return with_kind(type, side, [&]<class T, int kSide>() {
    return in_blocks(combine_threads(shape), [&](int64_t count, unsigned int blocks) {
      const auto kernel =
          whole(shape, y) ? upsample_combine_kernel<T, kSide, true> : upsample_combine_kernel<T, kSide, false>;
      kernel<<<blocks, kThreads, 0, stream>>>(shape, count, static_cast<const T*>(z), static_cast<const T*>(bias), relu,
                                              static_cast<T*>(y));
    });
  });
}

cudaError_t launch_upsample_combine_backward(MapType type, int side, const TapShape& shape, const void* grad, void* z,
                                             cudaStream_t stream) {
  return with_kind(type, side, [&]<class T, int kSide>() {
    return in_blocks(combine_backward_threads(shape), [&](int64_t count, unsigned int blocks) {
      const auto kernel = whole(shape, grad) ? upsample_combine_backward_kernel<T, kSide, true>
                                             : upsample_combine_backward_kernel<T, kSide, false>;
      kernel<<<blocks, kThreads, 0, stream>>>(shape, count, static_cast<const T*>(grad), static_cast<T*>(z));
    });
  });
}

}  // namespace setr_fast
