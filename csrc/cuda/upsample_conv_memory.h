// What the CUDA kernels of upsample_conv read and write with: values of three types, 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../upsample_combine.h"
#include "upsample_conv.h"

namespace setr_fast {

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

template <class Then>
cudaError_t with_kind(MapType type, int side, const Then& then) {
  const auto of_side = [&](auto value) {
    return side == 3 ? then.template operator()<decltype(value), 3>() : then.template operator()<decltype(value), 1>();
  };
  if (type == MapType::kFloat) return of_side(float{});
  if (type == MapType::kBFloat16) return of_side(__nv_bfloat16{});
  return of_side(__half{});
}

inline bool whole(const TapShape& shape, const void* map) {
  return shape.channels % kLanes == 0 && reinterpret_cast<uintptr_t>(map) % 16 == 0;
}

}  // namespace setr_fast
