// What the files of the patch embedding in whole numbers share: their processor's instructions and sizes.
#pragma once

#include <cstdint>

#include "patch_embed_vnni_core.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the "undefined" vectors of its own header for uninitialised ones.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#define SETR_FAST_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define SETR_FAST_VNNI_INLINE __attribute__((always_inline)) SETR_FAST_VNNI inline
#endif

namespace setr_fast {
namespace {

constexpr int64_t kQuad = 4;
constexpr int64_t kVector = kLanes * kQuad;  // bytes

#if defined(SETR_FAST_VNNI)

SETR_FAST_VNNI_INLINE __mmask16 first_of(int64_t count) {
  return count >= kLanes ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << count) - 1);
}

// 16 values of float32 or bfloat16, zero where there are none.
SETR_FAST_VNNI_INLINE __m512 load_floats(const void* from, bool bfloat16, int64_t at, __mmask16 some) {
  if (!bfloat16) return _mm512_maskz_loadu_ps(some, static_cast<const float*>(from) + at);
  const __m256i half = _mm256_maskz_loadu_epi16(some, static_cast<const uint16_t*>(from) + at);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

#endif

}  // namespace
}  // namespace setr_fast
