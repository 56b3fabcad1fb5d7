// Softmax attention of bytes (ops/attention_bytes.py says what is computed, to the bit), by the instructions that
// multiply 4 x 8 and 2 x 16 bits (AVX-512 VNNI).
//
// Keys and values of a head are laid out once for those instructions, then work is split along blocks of query rows.
// A block's scores, 32 bits, and its weights, 15 bits, stay in the first two caches; keys and values of a head, 192 KiB
// for 1024 tokens of 64 channels, in the second. The zero point of the keys adds the same to all scores of a row, which
// a softmax does not see. Bound by products: 2 N^2 E of them per head, those of weights and values at half rate.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../checks.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the "undefined" vectors of its own header for uninitialised ones.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#define SETR_FAST_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define SETR_FAST_VNNI_INLINE __attribute__((always_inline)) SETR_FAST_VNNI inline

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRows = 6;  // query rows: 6 x 4 sums, 4 vectors of keys or values and a row's fill 29 of 32 registers
constexpr int64_t kVectors = 4;  // of 16 keys, or of 16 channels
constexpr int64_t kLanes = 16;   // 32-bit sums of a vector
constexpr int64_t kKeys = kVectors * kLanes;
constexpr int64_t kSummed = 512;  // keys whose products stay below 2^31: 512 * 32767 * 128
constexpr float kMost = 32767.0f;

struct Call {
  const uint8_t* qkv;         // [B, N, 3, M, E]
  const float* score_factor;  // [M]: what one of a score is worth, in powers of two
  const float* value_factor;  // [M, E]: what one of a value is worth, in steps of the output
  int32_t zero, levels;
  uint8_t* out;  // [B, N, M, E]
  int64_t batch, tokens, heads, width;
  uint8_t* keys;    // [B, M, key groups, E / 4, 64, 4]
  int16_t* values;  // [B, M, token pairs, E, 2]

  int64_t groups() const { return (tokens + kKeys - 1) / kKeys; }
  int64_t pairs() const { return (tokens + 1) / 2; }
  int64_t blocks() const { return (tokens + kRows - 1) / kRows; }
  const uint8_t* at(int64_t b, int64_t token, int64_t part, int64_t head) const {
    return qkv + (((b * tokens + token) * 3 + part) * heads + head) * width;
  }
};

SETR_FAST_VNNI void lay_out(const Call& call, int64_t index) {
  const int64_t b = index / call.heads, head = index % call.heads, width = call.width;
  uint8_t* keys = call.keys + index * call.groups() * kKeys * width;
  for (int64_t token = 0; token < call.groups() * kKeys; ++token) {
    uint8_t* to = keys + token / kKeys * kKeys * width + token % kKeys * 4;
    const uint8_t* from = token < call.tokens ? call.at(b, token, 1, head) : nullptr;
    for (int64_t quad = 0; quad < width / 4; ++quad) {
      if (from) {
        std::memcpy(to + quad * kKeys * 4, from + quad * 4, 4);
      } else {
        std::memset(to + quad * kKeys * 4, 0, 4);
      }
    }
  }
  int16_t* values = call.values + index * call.pairs() * width * 2;
  for (int64_t pair = 0; pair < call.pairs(); ++pair) {
    const uint8_t* first = call.at(b, 2 * pair, 2, head);
    const bool both = 2 * pair + 1 < call.tokens;
    const uint8_t* second = both ? call.at(b, 2 * pair + 1, 2, head) : first;
    int16_t* to = values + pair * width * 2;
    for (int64_t i = 0; i < width; ++i) {
      to[2 * i] = static_cast<int16_t>(first[i] - 128);
      to[2 * i + 1] = both ? static_cast<int16_t>(second[i] - 128) : int16_t{0};
    }
  }
}

SETR_FAST_VNNI_INLINE __m512i broadcast(const void* four_bytes) {
  int32_t word;
  std::memcpy(&word, four_bytes, sizeof(word));
  return _mm512_set1_epi32(word);
}

// Scores of kRows queries (signed) with 64 keys (unsigned).
SETR_FAST_VNNI_INLINE void score(const uint8_t* keys, const int8_t* queries, int64_t width, int32_t* scores,
                                 int64_t stride) {
  __m512i sums[kRows][kVectors];
#pragma GCC unroll 6
  for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kVectors; ++i) sums[row][i] = _mm512_setzero_si512();
  }
  for (int64_t quad = 0; quad < width / 4; ++quad) {
    __m512i key[kVectors];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kVectors; ++i) key[i] = _mm512_loadu_si512(keys + (quad * kVectors + i) * 64);
#pragma GCC unroll 6
    for (int64_t row = 0; row < kRows; ++row) {
      const __m512i query = broadcast(queries + row * width + quad * 4);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kVectors; ++i) sums[row][i] = _mm512_dpbusd_epi32(sums[row][i], key[i], query);
    }
  }
#pragma GCC unroll 6
  for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kVectors; ++i) {
      _mm512_storeu_si512(scores + row * stride + i * kLanes, sums[row][i]);
    }
  }
}

// Two to the power of values that are not above zero. No step is contracted: the reference computes the same bits.
SETR_FAST_VNNI_INLINE __m512 power_of_two(__m512 x) {
  const __m512 whole =
      _mm512_max_ps(_mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm512_set1_ps(-126.0f));
  const __m512 rest = _mm512_max_ps(_mm512_sub_ps(x, whole), _mm512_set1_ps(-1.0f));
  __m512 y = _mm512_set1_ps(1.3333558e-3f);
  for (const float term : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
    y = _mm512_add_ps(_mm512_mul_ps(y, rest), _mm512_set1_ps(term));
  }
  return _mm512_scalef_ps(y, whole);
}

// Weights 0..32767 of one row, the largest score's being 32767, zeros up to a whole vector; returns their sum.
SETR_FAST_VNNI_INLINE int64_t weigh(const int32_t* scores, int64_t count, float factor, int16_t* weights) {
  const auto some = [&](int64_t i) {
    return count - i >= kLanes ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (count - i)) - 1);
  };
  __m512i most = _mm512_set1_epi32(std::numeric_limits<int32_t>::min());
  for (int64_t i = 0; i < count; i += kLanes) {
    most = _mm512_mask_max_epi32(most, some(i), most, _mm512_loadu_si512(scores + i));
  }
  const __m512i top = _mm512_set1_epi32(_mm512_reduce_max_epi32(most));
  __m512i sums = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512i below = _mm512_sub_epi32(_mm512_loadu_si512(scores + i), top);
    const __m512 power = power_of_two(_mm512_mul_ps(_mm512_cvtepi32_ps(below), _mm512_set1_ps(factor)));
    const __m512i weight = _mm512_maskz_cvtps_epi32(some(i), _mm512_mul_ps(power, _mm512_set1_ps(kMost)));
    sums = _mm512_add_epi32(sums, weight);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i), _mm512_cvtepi32_epi16(weight));
  }
  return _mm512_reduce_add_epi64(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(sums))) +
         _mm512_reduce_add_epi64(_mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(sums, 1)));
}

// Sums of kRows rows of weights with 16 * count channels of some pairs of values. A function of its own: within
// another, GCC 12 copies every sum twice per step.
template <int64_t count>
__attribute__((noinline)) SETR_FAST_VNNI void sum_pairs(const int16_t* values, int64_t width, const int16_t* weights,
                                                        int64_t stride, int64_t pairs, int32_t* to) {
  __m512i sums[kRows][count];
#pragma GCC unroll 6
  for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; ++i) sums[row][i] = _mm512_setzero_si512();
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512i value[count];
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; ++i) value[i] = _mm512_loadu_si512(values + (pair * width + i * kLanes) * 2);
#pragma GCC unroll 6
    for (int64_t row = 0; row < kRows; ++row) {
      const __m512i weight = broadcast(weights + row * stride + pair * 2);
#pragma GCC unroll 4
      for (int64_t i = 0; i < count; ++i) sums[row][i] = _mm512_dpwssd_epi32(sums[row][i], value[i], weight);
    }
  }
#pragma GCC unroll 6
  for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; ++i) _mm512_storeu_si512(to + (row * count + i) * kLanes, sums[row][i]);
  }
}

// Weighted means of 16 * count channels of the values, as bytes into `rows` rows of the output.
template <int64_t count>
SETR_FAST_VNNI_INLINE void mix(const Call& call, const int16_t* values, const int16_t* weights, int64_t stride,
                               const float* factor, const int64_t* totals, int64_t rows, uint8_t* out) {
  alignas(64) int32_t sums[kRows * count * kLanes];
  alignas(64) float mixed[kRows * count * kLanes] = {};
  for (int64_t begin = 0; begin < call.pairs(); begin += kSummed / 2) {
    sum_pairs<count>(values + begin * call.width * 2, call.width, weights + begin * 2, stride,
                     std::min(kSummed / 2, call.pairs() - begin), sums);
    for (int64_t i = 0; i < kRows * count * kLanes; i += kLanes) {
      const __m512 more = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i));
      _mm512_store_ps(mixed + i, _mm512_add_ps(_mm512_load_ps(mixed + i), more));
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const __m512 total = _mm512_set1_ps(static_cast<float>(totals[row]));
    for (int64_t i = 0; i < count; ++i) {
      const __m512 sum = _mm512_load_ps(mixed + (row * count + i) * kLanes);
      const __m512 steps = _mm512_div_ps(_mm512_mul_ps(sum, _mm512_loadu_ps(factor + i * kLanes)), total);
      // Kept in range before it is made whole: a number past 2^31 would come out negative.
      const __m512 near = _mm512_max_ps(_mm512_min_ps(steps, _mm512_set1_ps(512.0f)), _mm512_set1_ps(-512.0f));
      const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(near), _mm512_set1_epi32(call.zero));
      const __m512i byte =
          _mm512_min_epi32(_mm512_max_epi32(whole, _mm512_setzero_si512()), _mm512_set1_epi32(call.levels));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + row * call.heads * call.width + i * kLanes),
                       _mm512_cvtepi32_epi8(byte));
    }
  }
}

SETR_FAST_VNNI void attend(const Call& call, int64_t begin, int64_t end) {
  const int64_t width = call.width, stride = call.groups() * kKeys;
  std::vector<int8_t> queries(kRows * width);
  std::vector<int32_t> scores(kRows * stride);
  std::vector<int16_t> weights(kRows * stride);  // those of the rows past the last stay zero
  for (int64_t task = begin; task < end; ++task) {
    const int64_t index = task / call.blocks(), first = task % call.blocks() * kRows;
    const int64_t b = index / call.heads, head = index % call.heads;
    const int64_t rows = std::min(kRows, call.tokens - first);
    for (int64_t row = 0; row < kRows; ++row) {
      const uint8_t* from = call.at(b, first + std::min(row, rows - 1), 0, head);
      for (int64_t i = 0; i < width; ++i) queries[row * width + i] = static_cast<int8_t>(from[i] ^ 0x80);
    }
    const uint8_t* keys = call.keys + index * call.groups() * kKeys * width;
    for (int64_t group = 0; group < call.groups(); ++group) {
      score(keys + group * kKeys * width, queries.data(), width, scores.data() + group * kKeys, stride);
    }
    int64_t totals[kRows];
    for (int64_t row = 0; row < kRows; ++row) {
      totals[row] =
          weigh(scores.data() + row * stride, call.tokens, call.score_factor[head], weights.data() + row * stride);
    }
    for (int64_t channel = 0; channel < width; channel += kVectors * kLanes) {
      const int16_t* values = call.values + (index * call.pairs() * width + channel) * 2;
      const float* factor = call.value_factor + head * width + channel;
      uint8_t* out = call.out + ((b * call.tokens + first) * call.heads + head) * width + channel;
      switch (std::min(width - channel, kVectors * kLanes) / kLanes) {
        case 1:
          mix<1>(call, values, weights.data(), stride, factor, totals, rows, out);
          break;
        case 2:
          mix<2>(call, values, weights.data(), stride, factor, totals, rows, out);
          break;
        case 3:
          mix<3>(call, values, weights.data(), stride, factor, totals, rows, out);
          break;
        default:
          mix<4>(call, values, weights.data(), stride, factor, totals, rows, out);
      }
    }
  }
}

Tensor attention_bytes(const Tensor qkv, const Tensor score_factor, const Tensor value_factor, int64_t zero,
                       int64_t levels) {
  check(qkv.dim() == 5 && qkv.size(2) == 3, "attention_bytes: qkv must be [B, N, 3, M, E]");
  check(qkv.scalar_type() == ScalarType::Byte, "attention_bytes: qkv must be uint8");
  const int64_t batch = qkv.size(0), tokens = qkv.size(1), heads = qkv.size(3), width = qkv.size(4);
  check(width % kLanes == 0, "attention_bytes: head width must be a multiple of ", kLanes, ", got ", width);
  check(score_factor.numel() == heads && value_factor.numel() == heads * width,
        "attention_bytes: factors must be one per head, and one per channel");
  check(score_factor.scalar_type() == ScalarType::Float && value_factor.scalar_type() == ScalarType::Float,
        "attention_bytes: factors must be float32");
  const Tensor packed = torch::stable::contiguous(qkv);
  const Tensor of_scores = torch::stable::contiguous(score_factor), of_values = torch::stable::contiguous(value_factor);
  Tensor out = torch::stable::new_empty(packed, {batch, tokens, heads * width}, ScalarType::Byte);
  Call call{static_cast<const uint8_t*>(packed.const_data_ptr()),
            static_cast<const float*>(of_scores.const_data_ptr()),
            static_cast<const float*>(of_values.const_data_ptr()),
            static_cast<int32_t>(zero),
            static_cast<int32_t>(levels),
            static_cast<uint8_t*>(out.mutable_data_ptr()),
            batch,
            tokens,
            heads,
            width,
            nullptr,
            nullptr};
  Tensor keys = torch::stable::new_empty(packed, {batch * heads, call.groups() * kKeys * width}, ScalarType::Byte);
  Tensor values = torch::stable::new_empty(packed, {batch * heads, call.pairs() * width * 2}, ScalarType::Short);
  call.keys = static_cast<uint8_t*>(keys.mutable_data_ptr());
  call.values = static_cast<int16_t*>(values.mutable_data_ptr());
  torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) lay_out(call, index);
  });
  torch::stable::parallel_for(0, batch * heads * call.blocks(), 1,
                              [&](int64_t begin, int64_t end) { attend(call, begin, end); });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("attention_bytes", TORCH_BOX(&attention_bytes)); }

}  // namespace
}  // namespace setr_fast
#endif
