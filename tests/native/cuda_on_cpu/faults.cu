// Kernels with a fault each, and some without: what test_cuda_on_cpu.py shows the emulator to notice.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../../../csrc/cuda/mma.h"

namespace {

constexpr unsigned int kAll = 0xffffffffu;

// to[i] = the sum of from[0..n), by a tree over shared memory and shuffles. Without `barrier` it is wrong.
__global__ void sum_kernel(const float* from, float* to, int n, bool barrier) {
  extern __shared__ float part[];
  const int i = static_cast<int>(threadIdx.x);
  part[n - 1 - i] = from[i];
  if (barrier) __syncthreads();
  float sum = 0.0f;
  for (int at = i % 32; at < n; at += 32) sum += part[at];
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(kAll, sum, by);
  to[i] = sum;
}

__global__ void beyond_kernel(float* to, int n) { to[n + static_cast<int>(threadIdx.x)] = 1.0f; }

__global__ void some_leave_kernel(float* to) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  to[threadIdx.x] = 1.0f;
}

__global__ void lanes_differ_kernel(float* to) {
  to[threadIdx.x] = threadIdx.x < 7 ? 0.0f : __shfl_xor_sync(kAll, 1.0f, 1);
}

__global__ void copies_kernel(const float* from, float* to, bool wait) {
  extern __shared__ float part[];
  setr_fast::copy_async_16(part + threadIdx.x * 4, from + threadIdx.x * 4);
  setr_fast::copy_async_commit();
  if (wait) setr_fast::copy_async_wait<0>();
  for (int i = 0; i < 4; ++i) to[threadIdx.x * 4 + i] = part[threadIdx.x * 4 + i];
  if (!wait) setr_fast::copy_async_wait<0>();
}

// d [16, 8] = a [16, 16] b^T [8, 16], everything by rows.
__global__ void product_kernel(const __half* a, const __half* b, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto pair = [](const __half* at) { return *reinterpret_cast<const uint32_t*>(at); };
  const uint32_t of_a[4] = {pair(a + g * 16 + 2 * t), pair(a + (g + 8) * 16 + 2 * t), pair(a + g * 16 + 2 * t + 8),
                            pair(a + (g + 8) * 16 + 2 * t + 8)};
  const uint32_t of_b[2] = {pair(b + g * 16 + 2 * t), pair(b + g * 16 + 2 * t + 8)};
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  setr_fast::mma_16x8x16(sums, of_a, of_b);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

__global__ void narrowed_kernel(const float* from, __nv_bfloat16* bfloat16, __half* half) {
  bfloat16[threadIdx.x] = __float2bfloat16_rn(from[threadIdx.x]);
  half[threadIdx.x] = __float2half_rn(from[threadIdx.x]);
}

}  // namespace

// Returns the error, or null.
extern "C" __attribute__((visibility("default"))) const char* run_kernel(const char* name, const void* a, const void* b,
                                                                         void* to, int n, bool good, bool backwards) {
  cuda_on_cpu::backwards = backwards;
  const std::string kernel = name;
  const auto* from = static_cast<const float*>(a);
  auto* out = static_cast<float*>(to);
  const unsigned int threads = static_cast<unsigned int>(n);
  if (kernel == "sum") sum_kernel<<<1, threads, n * sizeof(float), nullptr>>>(from, out, n, good);
  if (kernel == "small") sum_kernel<<<1, threads, n * sizeof(float) - 4, nullptr>>>(from, out, n, good);
  if (kernel == "greedy") sum_kernel<<<1, threads, 49152 + 4, nullptr>>>(from, out, n, good);
  if (kernel == "beyond") beyond_kernel<<<1, threads, 0, nullptr>>>(out, n);
  if (kernel == "some_leave") some_leave_kernel<<<1, threads, 0, nullptr>>>(out);
  if (kernel == "lanes_differ") lanes_differ_kernel<<<1, threads, 0, nullptr>>>(out);
  if (kernel == "copies") copies_kernel<<<1, threads, n * 16, nullptr>>>(from, out, good);
  if (kernel == "product") {
    product_kernel<<<1, threads, 0, nullptr>>>(static_cast<const __half*>(a), static_cast<const __half*>(b), out);
  }
  if (kernel == "narrowed") {
    narrowed_kernel<<<1, threads, 0, nullptr>>>(from, static_cast<__nv_bfloat16*>(to), static_cast<__half*>(to) + n);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
