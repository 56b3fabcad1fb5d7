// Weights as digits of base 256, laid out for the products.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "../checks.h"
#include "patch_embed_vnni_intrinsics.h"

namespace setr_fast {

void FreeMemory::operator()(void* memory) const { std::free(memory); }

WeightDigits::WeightDigits(int64_t width, int64_t depth, int64_t digits_)
    : blocks((width + kLanes - 1) / kLanes), quads((depth + kQuad - 1) / kQuad), digits(digits_) {
  values.reset(static_cast<int8_t*>(std::aligned_alloc(kVector, blocks * quads * digits * kVector)));
  if (!values) throw std::bad_alloc();
  start.resize(blocks * digits * kLanes);
  step.resize(blocks * kLanes);
  moved.resize(blocks * kLanes);
}

#if defined(SETR_FAST_VNNI)

namespace {

// |w| * steps stays below this, so that no digit passes 127: 127 * 256 + 127 and 127 * 65536 + 32639, less rounding.
constexpr float kMostOfTwo = 32638.0f, kMostOfThree = 8355704.0f;
// Below this a channel's largest weight no longer sets its steps, which would be infinite.
constexpr float kMostSteps = 1e37f;

// Asks for a row of weights: rows end where pages do, and no processor foresees the next one.
inline void ask_for_row(const PatchWeights& weights, int64_t channel) {
  if (channel >= weights.width) return;
  const int64_t bytes = weights.depth() * (weights.bfloat16 ? 2 : 4);
  const char* from = static_cast<const char*>(weights.data) + channel * bytes;
  for (int64_t at = 0; at < bytes; at += kVector) __builtin_prefetch(from + at);
}

struct Row {
  float peak, moved;
};

// Writes the three planes of row `channel`, `stride` apart and filled up with zeros to whole vectors, and returns its
// largest magnitude and the sum of weight * moved. Magnitudes are compared as whole numbers, in which a NaN is larger
// than infinity: it is not lost.
SETR_FAST_VNNI Row normalise_row(const PatchWeights& weights, int64_t channel, int64_t stride, float* to) {
  const int64_t plane = weights.patch * weights.patch;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i peak = _mm512_setzero_si512();
  __m512 moved = _mm512_setzero_ps();
  for (int64_t c = 0; c < 3; ++c) {
    const __m512 inverse = _mm512_set1_ps(1.0f / weights.std[c]);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < plane; i += kLanes) {
      const __mmask16 some = first_of(plane - i);
      const int64_t at = (channel * 3 + c) * plane + i;
      const __m512 weight = load_floats(weights.data, weights.bfloat16, at, some),
                   value = _mm512_mul_ps(weight, inverse);
      _mm512_storeu_ps(to + c * stride + i, value);
      sum = _mm512_add_ps(sum, weight);
      peak = _mm512_max_epi32(peak, _mm512_and_si512(_mm512_castps_si512(value), magnitude));
    }
    moved = _mm512_fmadd_ps(sum, _mm512_set1_ps(weights.moved[c]), moved);
  }
  const int32_t most = _mm512_reduce_max_epi32(peak);
  Row row;
  std::memcpy(&row.peak, &most, sizeof(row.peak));
  row.moved = _mm512_reduce_add_ps(moved);
  return row;
}

// Where value `lane` of the third `third` of 16 pixels comes from, of which 16 values lie in each of three vectors.
struct Interleave {
  alignas(64) int32_t first[3][kLanes];   // among the first and second channel's 32 values
  alignas(64) int32_t second[3][kLanes];  // among those taken so far and the third channel's

  Interleave() {
    for (int32_t i = 0; i < 3 * kLanes; ++i) {
      const int32_t lane = i % kLanes, pixel = i / 3, channel = i % 3;
      first[i / kLanes][lane] = channel == 2 ? 0 : channel * kLanes + pixel;
      second[i / kLanes][lane] = channel == 2 ? kLanes + pixel : lane;
    }
  }
};

// Splits planes[channel][i] * steps into digits, pixel by pixel, the lowest digit last: to[t * stride + 3 * i +
// channel]. Planes and digits have room for whole vectors.
SETR_FAST_VNNI void split(const float* planes, int64_t plane_stride, int64_t pixels, float steps, int64_t digits,
                          int64_t stride, int8_t* to) {
  static const Interleave order;
  const __m512 factor = _mm512_set1_ps(steps);
  const __m512i half = _mm512_set1_epi32(128);
  for (int64_t i = 0; i < pixels; i += kLanes) {
    const __m512 red = _mm512_loadu_ps(planes + i), green = _mm512_loadu_ps(planes + plane_stride + i);
    const __m512 blue = _mm512_loadu_ps(planes + 2 * plane_stride + i);
    for (int64_t third = 0; third < 3; ++third) {
      const __m512 two = _mm512_permutex2var_ps(red, _mm512_load_si512(order.first[third]), green);
      const __m512 value = _mm512_permutex2var_ps(two, _mm512_load_si512(order.second[third]), blue);
      __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(value, factor));
      for (int64_t t = digits - 1; t >= 0; --t) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + t * stride + 3 * i + third * kLanes),
                         _mm512_cvtepi32_epi8(whole));
        whole = _mm512_srai_epi32(_mm512_add_epi32(whole, half), 8);
      }
    }
  }
}

// Transposes 16 rows of 16 words of 32 bits, `row_stride` bytes apart, into vectors `to_stride` bytes apart.
SETR_FAST_VNNI_INLINE void transpose(const int8_t* from, int64_t row_stride, int8_t* to, int64_t to_stride) {
  __m512i rows[kLanes], mixed[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = _mm512_loadu_si512(from + i * row_stride);
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    mixed[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    mixed[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {  // rows[i + c]: column 4 * quarter + c of four rows in each quarter
    rows[i] = _mm512_unpacklo_epi64(mixed[i], mixed[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(mixed[i], mixed[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(mixed[i + 1], mixed[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(mixed[i + 1], mixed[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(rows[c], rows[c + 4], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(rows[c], rows[c + 4], 0xdd);
    const __m512i high = _mm512_shuffle_i32x4(rows[c + 8], rows[c + 12], 0x88);
    const __m512i high_odd = _mm512_shuffle_i32x4(rows[c + 8], rows[c + 12], 0xdd);
    _mm512_storeu_si512(to + c * to_stride, _mm512_shuffle_i32x4(low, high, 0x88));
    _mm512_storeu_si512(to + (c + 4) * to_stride, _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    _mm512_storeu_si512(to + (c + 8) * to_stride, _mm512_shuffle_i32x4(low, high, 0xdd));
    _mm512_storeu_si512(to + (c + 12) * to_stride, _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
  }
}

// Lays the digits [kLanes, digits, stride] of a block side by side and adds up what the centres take off.
SETR_FAST_VNNI void lay_out(const int8_t* from, int64_t stride, const uint8_t* centres, WeightDigits& to,
                            int64_t block) {
  int8_t* out = to.values.get() + block * to.quads * to.digits * kVector;
  alignas(64) int8_t some[kLanes * kVector];
  for (int64_t t = 0; t < to.digits; ++t) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t quad = 0; quad < to.quads; quad += kLanes) {
      transpose(from + t * stride + quad * kQuad, to.digits * stride, some, kVector);
      for (int64_t i = 0; i < std::min(kLanes, to.quads - quad); ++i) {
        const __m512i four = _mm512_load_si512(some + i * kVector);
        _mm512_store_si512(out + ((quad + i) * to.digits + t) * kVector, four);
        int32_t centre;
        std::memcpy(&centre, centres + (quad + i) * kQuad, kQuad);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(centre), four);
      }
    }
    _mm512_storeu_si512(to.start.data() + (block * to.digits + t) * kLanes,
                        _mm512_sub_epi32(_mm512_setzero_si512(), sum));
  }
}

}  // namespace

void fill_digits(const PatchWeights& weights, WeightDigits& to, int64_t begin, int64_t end) {
  const int64_t pixels = weights.patch * weights.patch;
  const int64_t plane = (pixels + kLanes - 1) / kLanes * kLanes;
  const int64_t stride = (3 * plane + kVector - 1) / kVector * kVector;
  std::vector<float> row(3 * plane);
  std::vector<uint8_t> centres(stride);
  for (int64_t i = 0; i < stride; ++i) centres[i] = weights.centre[i % 3];
  std::vector<int8_t> digits(kLanes * to.digits * stride, 0);
  const float most = to.digits == 3 ? kMostOfThree : kMostOfTwo;
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t channel = block * kLanes + lane;
      int8_t* of_lane = digits.data() + lane * to.digits * stride;
      float& step = to.step[channel];
      ask_for_row(weights, channel + 2);
      const Row found = channel < weights.width ? normalise_row(weights, channel, plane, row.data()) : Row{};
      const float peak = found.peak;
      to.moved[channel] = found.moved;
      const bool usable = peak > 0.0f && std::isfinite(peak);
      const float steps = usable ? std::min(most / peak, kMostSteps) : 0.0f;
      step = usable ? 1.0f / steps : (peak == 0.0f ? 0.0f : std::numeric_limits<float>::quiet_NaN());
      if (usable) {
        split(row.data(), plane, pixels, steps, to.digits, stride, of_lane);
      } else {
        std::fill(of_lane, of_lane + to.digits * stride, int8_t{0});
      }
    }
    lay_out(digits.data(), stride, centres.data(), to, block);
  }
}

#else

void fill_digits(const PatchWeights&, WeightDigits&, int64_t, int64_t) { check(false, "patch_embed: no VNNI here"); }

#endif

}  // namespace setr_fast
