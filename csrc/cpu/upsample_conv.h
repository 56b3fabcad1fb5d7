// What forward and backward of upsample_conv share: sizes, and where a convolution tap looks through an interpolation.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../bilinear.h"
#include "../checks.h"

// Register tiles differ by vector width, so these kernels name their targets themselves (variants.h would compile one
// tile for all). The ISA is listed, not an architecture: GCC inlines into a function whose flags are a superset only.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <cpuid.h>
#define SETR_FAST_TARGETS 1
#define SETR_FAST_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx2,fma")))
#define SETR_FAST_AVX2 __attribute__((target("avx2,fma")))
#else
#define SETR_FAST_TARGETS 0
#endif

namespace setr_fast::upsample_conv {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kLanes = 16;  // output channels that move together: one 512-bit vector, one cache line

typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));

// Bits of the widest vectors that this CPU and its kernel of the system allow.
inline int width() {
#if SETR_FAST_TARGETS
  static const int bits = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd")) {
      return 512;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 256 : 128;
  }();
  return bits;
#else
  return 128;
#endif
}

// Whether the library's bfloat16 products run on a matrix unit (AMX). Without one they take twice as long as float32's.
inline bool has_matrix_unit() {
#if SETR_FAST_TARGETS
  static const bool found = [] {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
  }();
  return found;
#else
  return false;
#endif
}

struct Sizes {
  int64_t batch, channels, h, w, outputs, kernel, H, W;
  bool align_corners;

  int64_t taps() const { return kernel * kernel; }
  int64_t slices() const { return (outputs + kLanes - 1) / kLanes; }
};

// Output pixel `at` reads source pixels low and high through one tap; both shares are zero where the tap falls on the
// zero padding.
struct Reach {
  int64_t low, high;
  float low_share, high_share;
};

// [out * kernel]: all taps of all output pixels along one axis.
inline std::vector<Reach> reaches(int64_t in, int64_t out, int64_t kernel, bool align_corners) {
  const auto axis = make_axis<float>(in, out, align_corners);
  std::vector<Reach> table(out * kernel);
  for (int64_t at = 0; at < out; ++at) {
    for (int64_t tap = 0; tap < kernel; ++tap) {
      const int64_t pixel = at + tap - kernel / 2;
      const bool inside = pixel >= 0 && pixel < out;
      const auto mix = mix_at(axis, inside ? pixel : at);
      table[at * kernel + tap] = {mix.low, mix.high, inside ? 1 - mix.high_weight : 0, inside ? mix.high_weight : 0};
    }
  }
  return table;
}

// Scratch memory on a cache line, uninitialised, freed with the scope.
inline std::unique_ptr<float[], void (*)(void*)> scratch(int64_t floats) {
  const std::size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  return {static_cast<float*>(std::aligned_alloc(64, bytes ? bytes : 64)), std::free};
}

inline float widen(float value) { return value; }
inline float widen(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, uint16_t* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  *to = value != value ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline __attribute__((always_inline)) void store_lanes(const Lanes& value, float* to) {
  *reinterpret_cast<Lanes*>(to) = value;
}
inline __attribute__((always_inline)) void store_lanes(const Lanes& value, uint16_t* to) {
  const Words bits = reinterpret_cast<const Words&>(value);
  const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Words nan = (bits & 0x7fffffff) > 0x7f800000;  // all ones where the value is not a number
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Halves);
}

// Calls `then` with a pointer type's value for float32 or bfloat16 storage.
template <class Then>
void with_storage(const Tensor& tensor, const char* where, const Then& then) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return then(float{});
    case ScalarType::BFloat16:
      return then(uint16_t{});
    default:
      throw ShapeError(text(where, ": x must be float32 or bfloat16"));
  }
}

// Channels-last [B, C, H, W] as rows of pixels [B * H * W, C], the same memory.
inline Tensor pixel_rows(const Tensor& x) {
  Tensor rows = torch::stable::transpose(torch::stable::transpose(x, 1, 2), 2, 3);
  return torch::stable::view(rows, {x.size(0) * x.size(2) * x.size(3), x.size(1)});
}

Sizes checked_sizes(const char* where, const Tensor& x, const Tensor& weight, int64_t H, int64_t W, bool align_corners);

}  // namespace setr_fast::upsample_conv
