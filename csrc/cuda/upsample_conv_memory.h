// What the CUDA kernels of upsample_conv read and write with: values of three types, 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../upsample_combine.h"
#include "upsample_conv.h"

namespace setr_fast {

__device__ __forceinline__ float wide(float value) { return value; }
__device__ __forceinline__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float wide(__half value) { return __half2float(value); }
__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }
__device__ __forceinline__ void narrow(float value, __half& to) { to = __float2half_rn(value); }

template <class To, class From>
__device__ __forceinline__ To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Two values of a word, lower half first. A bfloat16 is the upper half of its float: one instruction each.
__device__ __forceinline__ void widen_pair(uint32_t word, const __nv_bfloat16*, float* to) {
  to[0] = bits_as<float>(word << 16);
  to[1] = bits_as<float>(word & 0xffff0000u);
}
__device__ __forceinline__ void widen_pair(uint32_t word, const __half*, float* to) {
  const auto pair = bits_as<__half2>(word);
  to[0] = __half2float(pair.x);
  to[1] = __half2float(pair.y);
}
__device__ __forceinline__ uint32_t narrow_pair(float first, float second, const __nv_bfloat16*) {
  return bits_as<uint32_t>(__floats2bfloat162_rn(first, second));
}
__device__ __forceinline__ uint32_t narrow_pair(float first, float second, const __half*) {
  return bits_as<uint32_t>(__floats2half2_rn(first, second));
}

// Eight values from an address on 16 bytes.
__device__ __forceinline__ Lanes load(const float* __restrict__ from) {
  const auto* four = reinterpret_cast<const float4*>(from);
  const float4 a = four[0], b = four[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
template <class T>
__device__ __forceinline__ Lanes load(const T* __restrict__ from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  Lanes lanes;
  widen_pair(words.x, from, lanes.of);
  widen_pair(words.y, from, lanes.of + 2);
  widen_pair(words.z, from, lanes.of + 4);
  widen_pair(words.w, from, lanes.of + 6);
  return lanes;
}

// And back, by a function that is 16 bytes: of a plain assignment the compiler makes four, where conversions are near.
__device__ __forceinline__ void store(float* __restrict__ to, const Lanes& lanes) {
  const float* of = lanes.of;
  __stwb(reinterpret_cast<float4*>(to), float4{of[0], of[1], of[2], of[3]});
  __stwb(reinterpret_cast<float4*>(to) + 1, float4{of[4], of[5], of[6], of[7]});
}
template <class T>
__device__ __forceinline__ void store(T* __restrict__ to, const Lanes& lanes) {
  const float* of = lanes.of;
  __stwb(reinterpret_cast<uint4*>(to), uint4{narrow_pair(of[0], of[1], to), narrow_pair(of[2], of[3], to),
                                             narrow_pair(of[4], of[5], to), narrow_pair(of[6], of[7], to)});
}

// kWhole: the channels are a multiple of kLanes, and the map that has exactly so many starts on 16 bytes.
template <class T, bool kWhole>
struct ForwardMemory {
  const T* __restrict__ z;
  T* __restrict__ y;
  const T* __restrict__ bias;
  int64_t channels;
  bool relu;

  __device__ __forceinline__ Lanes load_z(int64_t line, int32_t offset) const { return load(z + line + offset); }
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
