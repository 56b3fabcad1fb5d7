// Products of the bytes of a tile and the digits of a block, and what is added to them.
#include <cstring>

#include "../checks.h"
#include "patch_embed_vnni_intrinsics.h"

namespace setr_fast {

#if defined(SETR_FAST_VNNI)

namespace {

// The vectors of one patch or of one place of the weights, by digits; `middle` is of three digits only.
struct Digits {
  __m512i high, middle, low;
};

template <int kDigits>
SETR_FAST_VNNI_INLINE Digits load(const void* from) {
  const auto* at = static_cast<const int8_t*>(from);
  Digits found;
  found.high = _mm512_loadu_si512(at);
  found.middle = _mm512_loadu_si512(at + kVector);
  found.low = kDigits == 3 ? _mm512_loadu_si512(at + 2 * kVector) : found.middle;
  return found;
}

// Written out, since GCC 12 keeps a copy of every sum in memory when the intrinsic is used.
SETR_FAST_VNNI_INLINE void multiply(__m512i& sum, __m512i bytes, __m512i digits) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(digits));
}

template <int kDigits>
SETR_FAST_VNNI_INLINE void add(Digits& sums, const uint8_t* bytes, const Digits& digits) {
  int32_t four;
  std::memcpy(&four, bytes, kQuad);
  const __m512i all = _mm512_set1_epi32(four);
  multiply(sums.high, all, digits.high);
  if constexpr (kDigits == 3) multiply(sums.middle, all, digits.middle);
  multiply(sums.low, all, digits.low);
}

enum class Kind { kFloat, kHalfPositions, kHalf };  // dtypes of positions and tokens

// To nearest, ties to even; a NaN stays one.
SETR_FAST_VNNI_INLINE __m256i rounded(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 number = _mm512_cmp_ps_mask(values, values, _CMP_ORD_Q);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_srli_epi32(quiet, number, up, 16));
}

// What the ends of the rows of one tile have in common.
struct Ends {
  const Target& target;
  const Place* places;
  int64_t count, channel;
  __m512 step;
  __mmask16 some;
};

template <int kDigits, Kind kKind>
SETR_FAST_VNNI_INLINE void store(const Digits& sums, const Ends& ends, int64_t patch) {
  if (patch >= ends.count) return;
  const __m512 base = _mm512_set1_ps(256.0f);
  __m512 total = _mm512_cvtepi32_ps(sums.high);
  if constexpr (kDigits == 3) total = _mm512_fmadd_ps(total, base, _mm512_cvtepi32_ps(sums.middle));
  total = _mm512_fmadd_ps(total, base, _mm512_cvtepi32_ps(sums.low));
  const Place& place = ends.places[patch];
  const int64_t from = place.position + ends.channel, to = place.token + ends.channel;
  const __m512 position = load_floats(ends.target.positions, kKind != Kind::kFloat, from, ends.some);
  const __m512 rest = _mm512_add_ps(_mm512_maskz_loadu_ps(ends.some, place.rest + ends.channel), position);
  total = _mm512_add_ps(_mm512_mul_ps(total, ends.step), rest);
  if constexpr (kKind == Kind::kHalf) {
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(ends.target.tokens) + to, ends.some, rounded(total));
  } else {
    _mm512_mask_storeu_ps(static_cast<float*>(ends.target.tokens) + to, ends.some, total);
  }
}

template <int kDigits, Kind kKind>
SETR_FAST_VNNI void multiply_tile_of(const WeightDigits& weights, int64_t block, const uint8_t* rows,
                                     const Target& target, const Place* places, int64_t count) {
  const int64_t depth = weights.quads * kQuad;
  const int8_t* values = weights.values.get() + block * weights.quads * kDigits * kVector;
  Digits s0 = load<kDigits>(weights.start.data() + block * kDigits * kLanes);
  Digits s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  for (int64_t at = 0; at < depth; at += kQuad) {
    const Digits digits = load<kDigits>(values);
    values += kDigits * kVector;
    add<kDigits>(s0, rows + at, digits);
    add<kDigits>(s1, rows + depth + at, digits);
    add<kDigits>(s2, rows + 2 * depth + at, digits);
    add<kDigits>(s3, rows + 3 * depth + at, digits);
    add<kDigits>(s4, rows + 4 * depth + at, digits);
    add<kDigits>(s5, rows + 5 * depth + at, digits);
    add<kDigits>(s6, rows + 6 * depth + at, digits);
    add<kDigits>(s7, rows + 7 * depth + at, digits);
  }
  const int64_t channel = block * kLanes;
  const __m512 step = _mm512_loadu_ps(weights.step.data() + channel);
  const Ends ends{target, places, count, channel, step, first_of(target.width - channel)};
  store<kDigits, kKind>(s0, ends, 0);
  store<kDigits, kKind>(s1, ends, 1);
  store<kDigits, kKind>(s2, ends, 2);
  store<kDigits, kKind>(s3, ends, 3);
  store<kDigits, kKind>(s4, ends, 4);
  store<kDigits, kKind>(s5, ends, 5);
  store<kDigits, kKind>(s6, ends, 6);
  store<kDigits, kKind>(s7, ends, 7);
}

template <int kDigits>
auto tile_of(const Target& target) {
  return target.half_tokens      ? multiply_tile_of<kDigits, Kind::kHalf>
         : target.half_positions ? multiply_tile_of<kDigits, Kind::kHalfPositions>
                                 : multiply_tile_of<kDigits, Kind::kFloat>;
}

}  // namespace

bool vnni_works() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw"); }

void ask_for(const Target& target, const Place* places, int64_t count, int64_t block) {
  const auto* positions = static_cast<const char*>(target.positions);
  auto* tokens = static_cast<char*>(target.tokens);
  for (int64_t p = 0; p < count; ++p) {
    __builtin_prefetch(positions + (places[p].position + block * kLanes) * (target.half_positions ? 2 : 4), 0);
    __builtin_prefetch(tokens + (places[p].token + block * kLanes) * (target.half_tokens ? 2 : 4), 1);
  }
}

void multiply_tile(const WeightDigits& weights, int64_t block, const uint8_t* rows, const Target& target,
                   const Place* places, int64_t count) {
  const auto tile = weights.digits == 3 ? tile_of<3>(target) : tile_of<2>(target);
  tile(weights, block, rows, target, places, count);
}

#else

bool vnni_works() { return false; }
void ask_for(const Target&, const Place*, int64_t, int64_t) {}
void multiply_tile(const WeightDigits&, int64_t, const uint8_t*, const Target&, const Place*, int64_t) {
  check(false, "patch_embed: no VNNI here");
}

#endif

}  // namespace setr_fast
