// The few instructions for which CUDA has no function: asynchronous copies into shared memory, products of a warp.
//
// Without nvcc the tests' emulator gives the same functions: a copy arrives when it is waited for, and a product is
// computed from the fragments of all lanes (tests/native/cuda_on_cpu/mma_on_cpu.h).
#pragma once

#if defined(__CUDACC__)

#include <cstdint>

namespace setr_fast {

// Copies 16 bytes; both addresses lie on 16 bytes. Needs sm_80.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  const auto to = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(global) : "memory");
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits for this thread's groups but the newest kPending. A barrier must follow for the other threads'.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// d += a b of a warp, float16 into float32: a [16, 16] by rows, b [16, 8] by columns. With g = lane / 4, t = lane % 4:
// a holds rows g, g + 8, g, g + 8 at k = 2 t (first two) and 2 t + 8 (last two), b column g at k = 2 t and 2 t + 8,
// d row g (first two) and g + 8 at columns 2 t and 2 t + 1.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace setr_fast

#else
#include <mma_on_cpu.h>
#endif
