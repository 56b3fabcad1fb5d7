// Reads low rows of logits and rows of labels, and writes low rows of gradients, in any layout.
#include <cstring>

#include "upsample_cross_entropy_band.h"

namespace setr_fast::cross_entropy {
namespace {

inline float widened(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline uint16_t narrowed(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

template <class Label>
LabelCount read(const Problem& p, const Label* labels, int64_t count, int32_t* to) {
  LabelCount found;
  for (int64_t i = 0; i < count; ++i) {
    const auto label = static_cast<int64_t>(labels[i]);
    const bool counts = label != p.ignore_index;
    const bool legal = label >= 0 && label < p.classes;
    if (counts && !legal && !found.has_illegal) found.has_illegal = true, found.illegal = label;
    to[i] = counts && legal ? static_cast<int32_t>(label) : kNoLabel;
    found.counted += counts;
    if (p.class_weights && counts && legal) found.weight += static_cast<double>(p.class_weights[label]);
  }
  return found;
}

}  // namespace

void read_row(const Problem& p, int64_t picture, int64_t row, float* scores) {
  const int64_t padded = p.padded(), offset = picture * p.logits.strides[0] + row * p.logits.strides[2];
  const int64_t step_k = p.logits.strides[1], step_x = p.logits.strides[3];
  const auto* wide = static_cast<const float*>(p.logits.data) + (p.logits.bfloat16 ? 0 : offset);
  const auto* half = static_cast<const uint16_t*>(p.logits.data) + (p.logits.bfloat16 ? offset : 0);
  if (step_k == 1) {
    for (int64_t x = 0; x < p.low_width; ++x) {
      if (p.logits.bfloat16) {
        for (int64_t k = 0; k < p.classes; ++k) scores[x * padded + k] = widened(half[x * step_x + k]);
      } else {
        std::memcpy(scores + x * padded, wide + x * step_x, static_cast<size_t>(p.classes) * sizeof(float));
      }
    }
  } else {  // along x inside, so that 16 classes of a pixel fill one cache line before it leaves
    for (int64_t k = 0; k < p.classes; ++k) {
      if (p.logits.bfloat16) {
        for (int64_t x = 0; x < p.low_width; ++x) scores[x * padded + k] = widened(half[k * step_k + x * step_x]);
      } else {
        for (int64_t x = 0; x < p.low_width; ++x) scores[x * padded + k] = wide[k * step_k + x * step_x];
      }
    }
  }
}

LabelCount read_labels(const Problem& p, int64_t first, int64_t count, int32_t* to) {
  switch (p.label_type) {
    case LabelType::kUint8:
      return read(p, static_cast<const uint8_t*>(p.labels) + first, count, to);
    case LabelType::kInt16:
      return read(p, static_cast<const int16_t*>(p.labels) + first, count, to);
    case LabelType::kInt32:
      return read(p, static_cast<const int32_t*>(p.labels) + first, count, to);
    default:
      return read(p, static_cast<const int64_t*>(p.labels) + first, count, to);
  }
}

void write_row(const Problem& p, int64_t picture, int64_t row, const float* gradients) {
  const int64_t padded = p.padded(), offset = picture * p.gradient.strides[0] + row * p.gradient.strides[2];
  const int64_t step_k = p.gradient.strides[1], step_x = p.gradient.strides[3];
  auto* wide = static_cast<float*>(p.gradient.data) + (p.gradient.bfloat16 ? 0 : offset);
  auto* half = static_cast<uint16_t*>(p.gradient.data) + (p.gradient.bfloat16 ? offset : 0);
  if (p.adds) {  // float32 only
    for (int64_t x = 0; x < p.low_width; ++x)
      for (int64_t k = 0; k < p.classes; ++k) wide[k * step_k + x * step_x] += gradients[x * padded + k];
    return;
  }
  if (step_k == 1) {
    for (int64_t x = 0; x < p.low_width; ++x) {
      if (p.gradient.bfloat16) {
        for (int64_t k = 0; k < p.classes; ++k) half[x * step_x + k] = narrowed(gradients[x * padded + k]);
      } else {
        std::memcpy(wide + x * step_x, gradients + x * padded, static_cast<size_t>(p.classes) * sizeof(float));
      }
    }
    return;
  }
  for (int64_t k = 0; k < p.classes; ++k) {
    if (p.gradient.bfloat16) {
      for (int64_t x = 0; x < p.low_width; ++x) half[k * step_k + x * step_x] = narrowed(gradients[x * padded + k]);
    } else {
      for (int64_t x = 0; x < p.low_width; ++x) wide[k * step_k + x * step_x] = gradients[x * padded + k];
    }
  }
}

}  // namespace setr_fast::cross_entropy
