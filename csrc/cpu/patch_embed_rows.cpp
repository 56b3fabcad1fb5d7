// The patches of pictures of bytes as rows of a matrix, normalised on the way.
//
// Work is split along lines of patches: a thread reads the picture in order. A line is normalised as it lies (channels
// in turn, so that the loop is plain vectors), then its channels are taken apart where the matrix wants them apart.
// Bound by bytes: 4 written for each read in float32.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <vector>

#include "../checks.h"
#include "../patch_arguments.h"
#include "../patch_rows.h"
#include "../variants.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainBytes = 1 << 15;  // bytes of a picture that pay for waking a thread

// Round to nearest, ties to even; what is normalised is never a NaN.
inline uint16_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store(float* to, float value) { *to = value; }
inline void store(uint16_t* to, float value) { *to = rounded(value); }

// What every line of a patch needs, once: the three numbers per channel repeated along a line of patch pixels.
struct Pattern {
  std::vector<float> shift, scale, fill;

  Pattern(const ByteScaling& scaling, int64_t values) : shift(values), scale(values), fill(values) {
    for (int64_t i = 0; i < values; ++i) {
      shift[i] = scaling.shift[i % kPatchChannels];
      scale[i] = scaling.scale[i % kPatchChannels];
      fill[i] = scaling.fill[i % kPatchChannels];
    }
  }
};

template <class T>
inline void interleaved_line(const uint8_t* from, int64_t bytes, int64_t values, const float* shift, const float* scale,
                             const float* fill, T* to) {
  for (int64_t i = 0; i < bytes; ++i) store(to + i, (static_cast<float>(from[i]) - shift[i]) / scale[i]);
  for (int64_t i = bytes; i < values; ++i) store(to + i, fill[i]);
}

template <class T>
inline void apart(const float* line, int64_t pixels, int64_t plane, T* to) {
  T* red = to;
  T* green = to + plane;
  T* blue = to + 2 * plane;
  for (int64_t x = 0; x < pixels; ++x) {
    store(red + x, line[kPatchChannels * x]);
    store(green + x, line[kPatchChannels * x + 1]);
    store(blue + x, line[kPatchChannels * x + 2]);
  }
}

template <class T>
inline void fill_lines(const PatchGrid& grid, const uint8_t* image, const Pattern& pattern, bool planar, T* rows,
                       int64_t begin, int64_t end) {
  const int64_t values = grid.patch * kPatchChannels;
  const int64_t plane = grid.patch * grid.patch;
  std::vector<float> line(values);
  for (int64_t index = begin; index < end; ++index) {
    const PatchLine at = patch_line(grid, index);
    T* row = rows + at.row * plane * kPatchChannels;
    const float *shift = pattern.shift.data(), *scale = pattern.scale.data(), *fill = pattern.fill.data();
    if (!planar) {
      interleaved_line(image + at.source, at.bytes, values, shift, scale, fill, row + at.at);
      continue;
    }
    interleaved_line(image + at.source, at.bytes, values, shift, scale, fill, line.data());
    apart(line.data(), grid.patch, plane, row + at.at / kPatchChannels);
  }
}

SETR_FAST_VARIANTS void fill_float(const PatchGrid& grid, const uint8_t* image, const Pattern& pattern, bool planar,
                                   float* rows, int64_t begin, int64_t end) {
  fill_lines(grid, image, pattern, planar, rows, begin, end);
}

SETR_FAST_VARIANTS void fill_bfloat16(const PatchGrid& grid, const uint8_t* image, const Pattern& pattern, bool planar,
                                      uint16_t* rows, int64_t begin, int64_t end) {
  fill_lines(grid, image, pattern, planar, rows, begin, end);
}

Tensor patch_embed_rows(const Tensor image, int64_t patch, int64_t h, int64_t w, std::vector<double> shift,
                        std::vector<double> scale, std::vector<double> fill, bool planar, ScalarType dtype) {
  const bool pictures = image.scalar_type() == ScalarType::Byte && image.dim() == 4;
  check_patches(pictures ? image.size(3) : 0, patch, h, w);
  check(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, "patch_embed_rows: dtype must be float32 or ",
        "bfloat16");
  const bool in_order = image.stride(3) == 1 && image.stride(2) == kPatchChannels;
  const Tensor pixels = in_order ? image : torch::stable::contiguous(image);
  const PatchGrid grid{pixels.size(0), pixels.size(1), pixels.size(2), pixels.stride(0), pixels.stride(1), patch, h, w};
  const Pattern pattern(byte_scaling(shift, scale, fill), patch * kPatchChannels);
  Tensor out = torch::stable::new_empty(image, {grid.pictures * h * w, patch * patch * kPatchChannels}, dtype);
  const auto* bytes = static_cast<const uint8_t*>(pixels.const_data_ptr());
  void* rows = out.mutable_data_ptr();
  const int64_t grain = kGrainBytes / (patch * kPatchChannels) + 1;
  torch::stable::parallel_for(0, patch_lines(grid), grain, [&](int64_t begin, int64_t end) {
    if (dtype == ScalarType::Float) {
      fill_float(grid, bytes, pattern, planar, static_cast<float*>(rows), begin, end);
    } else {
      fill_bfloat16(grid, bytes, pattern, planar, static_cast<uint16_t*>(rows), begin, end);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("patch_embed_rows", TORCH_BOX(&patch_embed_rows)); }

}  // namespace
}  // namespace setr_fast
