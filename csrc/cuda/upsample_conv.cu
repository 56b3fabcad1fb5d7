// Combines tap maps of low resolution into a convolution of the upsampled map, and gathers the gradient of the tap
// maps. UNMEASURED: compiled and inspected, never run on a GPU by the authors.
//
// Forward: a thread owns 8 channels of one output column and walks down kRows pixels of it (csrc/upsample_combine.h);
// neighbouring threads own neighbouring channels, then neighbouring columns, so every access is 16 bytes and a block's
// columns find each other's source columns in L1. At a factor of two a pixel costs 9 loads of 16 bytes and 15
// multiply-adds per channel. Backward: a thread owns 8 channels of one low-resolution pixel and all taps; 36 loads at a
// factor of two. Bound by bytes: z once, y once. docs/design/0005-upsample-conv.md
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <climits>

#include "upsample_conv.h"

namespace setr_fast {
namespace {

constexpr int kThreads = 128;
template <int kSide>
constexpr int kBlocks = kSide == 3 ? 3 : 7;  // per multiprocessor: as many as registers allow without a spill

__device__ __forceinline__ float wide(float value) { return value; }
__device__ __forceinline__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float wide(__half value) { return __half2float(value); }
__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }
__device__ __forceinline__ void narrow(float value, __half& to) { to = __float2half_rn(value); }

template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) Vector {
  T of[kVector<T>];
};

template <class T>
__device__ __forceinline__ Lanes load(const T* __restrict__ from) {
  Lanes lanes;
#pragma unroll
  for (int first = 0; first < kLanes; first += kVector<T>) {
    const auto vector = *reinterpret_cast<const Vector<T>*>(from + first);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) lanes.of[first + i] = wide(vector.of[i]);
  }
  return lanes;
}

template <class T>
__device__ __forceinline__ void store(T* __restrict__ to, const Lanes& lanes) {
#pragma unroll
  for (int first = 0; first < kLanes; first += kVector<T>) {
    Vector<T> vector;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) narrow(lanes.of[first + i], vector.of[i]);
    *reinterpret_cast<Vector<T>*>(to + first) = vector;
  }
}

// kWhole: the channels are a multiple of kLanes, and the map that has exactly so many starts on 16 bytes.
template <class T, bool kWhole>
struct ForwardMemory {
  const T* __restrict__ z;
  T* __restrict__ y;
  const T* __restrict__ bias;
  int64_t channels;
  bool relu;

  __device__ __forceinline__ Lanes load_z(int64_t offset) const { return load(z + offset); }
  __device__ __forceinline__ Lanes start(int64_t channel) const {
    Lanes lanes;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      lanes.of[i] = bias != nullptr && channel + i < channels ? wide(bias[channel + i]) : 0.0f;
    }
    return lanes;
  }
  __device__ __forceinline__ void finish(int64_t pixel, int64_t channel, Lanes lanes) const {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) lanes.of[i] = relu && lanes.of[i] < 0.0f ? 0.0f : lanes.of[i];
    if constexpr (kWhole) {
      store(y + pixel + channel, lanes);
    } else {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (channel + i < channels) narrow(lanes.of[i], y[pixel + channel + i]);
      }
    }
  }
};

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

template <class Then>
cudaError_t with_kind(MapType type, int side, const Then& then) {
  const auto of_side = [&](auto value) {
    return side == 3 ? then.template operator()<decltype(value), 3>() : then.template operator()<decltype(value), 1>();
  };
  if (type == MapType::kFloat) return of_side(float{});
  if (type == MapType::kBFloat16) return of_side(__nv_bfloat16{});
  return of_side(__half{});
}

bool whole(const TapShape& shape, const void* map) {
  return shape.channels % kLanes == 0 && reinterpret_cast<uintptr_t>(map) % 16 == 0;
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
