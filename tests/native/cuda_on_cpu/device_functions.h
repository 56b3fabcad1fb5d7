// What kernels and launchers call, for emulator.h.
#pragma once

#include "emulator.h"

inline void __syncthreads() {
  ++cuda_on_cpu::state.at_barrier;
  cuda_on_cpu::yield(cuda_on_cpu::Waits::kBarrier);
}

inline void __syncwarp(unsigned int mask = 0xffffffffu) {
  cuda_on_cpu::whole_warp(mask);
  cuda_on_cpu::exchange(nullptr, 0);
}

namespace cuda_on_cpu {

template <class T>
T from_lane(const unsigned char* slots, unsigned int lane) {
  T value;
  std::memcpy(&value, slots + (lane % kWarp) * kSlotBytes, sizeof(T));
  return value;
}

template <class T>
const unsigned char* put(unsigned int mask, const T& value) {
  whole_warp(mask);
  return exchange(&value, sizeof(T)).slots[0];
}

}  // namespace cuda_on_cpu

template <class T>
T __shfl_sync(unsigned int mask, T value, int lane) {
  return cuda_on_cpu::from_lane<T>(cuda_on_cpu::put(mask, value), static_cast<unsigned int>(lane));
}
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int bits) {
  return cuda_on_cpu::from_lane<T>(cuda_on_cpu::put(mask, value),
                                   cuda_on_cpu::lane() ^ static_cast<unsigned int>(bits));
}
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int by) {
  const unsigned int from = cuda_on_cpu::lane() + by;
  return cuda_on_cpu::from_lane<T>(cuda_on_cpu::put(mask, value), from < 32 ? from : cuda_on_cpu::lane());
}

template <class T>
unsigned int __match_any_sync(unsigned int mask, T value) {
  const unsigned char* slots = cuda_on_cpu::put(mask, value);
  unsigned int same = 0;
  for (unsigned int lane = 0; lane < cuda_on_cpu::kWarp; ++lane) {
    if (cuda_on_cpu::from_lane<T>(slots, lane) == value) same |= 1u << lane;
  }
  return same;
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned int value) { return __builtin_popcount(value); }

template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}
template <class T>
T atomicMax(T* at, T value) {
  const T before = *at;
  *at = before < value ? value : before;
  return before;
}

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
void __stwb(T* at, T value) {
  *at = value;
}

inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t chosen = 0;
  for (int i = 0; i < 4; ++i) chosen |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return chosen;
}

inline cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::state.last, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu::state.error.c_str(); }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 2, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (static_cast<size_t>(bytes) > cuda_on_cpu::kSharedBytes) return cudaErrorInvalidValue;
  cuda_on_cpu::state.shared_limit[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

// torch's current stream, for csrc/cuda/stream.h.
extern "C" inline int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) { return *stream = nullptr, 0; }
