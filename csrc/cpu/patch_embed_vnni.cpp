// Patch embedding of pictures of bytes in whole numbers (patch_embed_vnni_core.h): the bytes are multiplied as they
// lie.
//
// With a whole number next to the mean as centre, W (byte - mean) / std = W / std (byte - centre) + rest, where the
// rest is one number per output channel. Off the picture there is the mean colour: bytes are the centre there, and the
// rest is summed over the pixels that are on the picture. Work is split along strips of patches; their bytes and the
// digits of some output channels stay in the second cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "../bindings.h"
#include "../checks.h"
#include "../patch_arguments.h"
#include "../variants.h"
#include "patch_embed_vnni_core.h"
#include "turns.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kStripTiles = 8;   // 64 patches of 16 x 16: 48 KiB of bytes
constexpr int64_t kGroupBlocks = 4;  // 64 output channels: 144 KiB of digits
constexpr int64_t kMostPatch = 128;  // sums of 3 * 128^2 products of 8 bits stay below 2^31
constexpr int64_t kBlocksOfTask = 2;
constexpr int64_t kAhead = 384;  // bytes of a line that are asked for before they are copied: 8 patches of 16

inline float as_float(float value) { return value; }
inline float as_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
// How much of a patch lies on the picture, and what every token of such a patch has added.
struct Coverage {
  int64_t lines, pixels;
  std::vector<float> rest;  // [D]: bias included
};

struct Call {
  PatchGrid grid;
  const uint8_t* bytes;
  uint8_t centre[kPatchChannels];
  float moved[kPatchChannels];  // (centre - mean) / std
  PatchWeights weights;
  std::vector<Coverage> coverages;
  Target target;

  int64_t lines_of(int64_t down) const { return std::clamp(grid.height - down * grid.patch, int64_t{0}, grid.patch); }
  int64_t pixels_of(int64_t across) const {
    return std::clamp(grid.width - across * grid.patch, int64_t{0}, grid.patch);
  }
  const Coverage& coverage(int64_t down, int64_t across) const {
    const int64_t lines = lines_of(down), pixels = pixels_of(across);
    return *std::find_if(coverages.begin(), coverages.end(),
                         [&](const Coverage& c) { return c.lines == lines && c.pixels == pixels; });
  }
};

template <class T>
inline float sum_of(const T* values, int64_t count) {
  float partial[kLanes] = {};  // independent of each other, so that they are one vector
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) partial[lane] += as_float(values[i + lane]);
  }
  for (; i < count; ++i) partial[i % kLanes] += as_float(values[i]);
  float total = 0.0f;
  for (float one : partial) total += one;
  return total;
}

template <class T>
inline void add_rest_of(const Call& call, const T* weight, int64_t begin, int64_t end, Coverage& coverage) {
  const int64_t patch = call.grid.patch;
  for (int64_t channel = begin; channel < end; ++channel) {
    float total = 0.0f;
    for (int64_t c = 0; c < kPatchChannels; ++c) {
      const T* plane = weight + (channel * kPatchChannels + c) * patch * patch;
      float of_plane = 0.0f;
      if (coverage.pixels == patch) {
        of_plane = sum_of(plane, coverage.lines * patch);
      } else {
        for (int64_t y = 0; y < coverage.lines; ++y) of_plane += sum_of(plane + y * patch, coverage.pixels);
      }
      total += of_plane * call.moved[c];
    }
    coverage.rest[channel] += total;
  }
}

SETR_FAST_VARIANTS void add_rest(const Call& call, int64_t begin, int64_t end, Coverage& coverage) {
  if (call.weights.bfloat16) {
    add_rest_of(call, static_cast<const uint16_t*>(call.weights.data), begin, end, coverage);
  } else {
    add_rest_of(call, static_cast<const float*>(call.weights.data), begin, end, coverage);
  }
}

// Copies the bytes of patches [first, last) to rows of `stride` bytes, the centre where they are off the picture.
void gather(const Call& call, int64_t first, int64_t last, int64_t stride, uint8_t* rows, Place* places) {
  const PatchGrid& grid = call.grid;
  const int64_t line_bytes = grid.patch * kPatchChannels;
  for (int64_t index = first; index < last; ++index, rows += stride) {
    const int64_t across = index % grid.w, down = index / grid.w % grid.h, picture = index / grid.w / grid.h;
    *places++ = {call.coverage(down, across).rest.data(), (down * grid.w + across) * call.weights.width,
                 index * call.weights.width};
    const int64_t lines = call.lines_of(down), bytes = call.pixels_of(across) * kPatchChannels;
    const uint8_t* from =
        call.bytes + picture * grid.picture_step + down * grid.patch * grid.line_step + across * line_bytes;
    for (int64_t y = 0; y < grid.patch; ++y) {
      __builtin_prefetch(from + y * grid.line_step + kAhead);
      const int64_t known = y < lines ? bytes : 0;
      if (known > 0) std::memcpy(rows + y * line_bytes, from + y * grid.line_step, known);
      for (int64_t i = known; i < line_bytes; ++i) rows[y * line_bytes + i] = call.centre[i % kPatchChannels];
    }
  }
}

void fill_and_multiply(Call& call) {
  const int64_t patches = call.grid.pictures * call.grid.h * call.grid.w;
  WeightDigits digits(call.weights.width, call.weights.depth(), call.weights.bfloat16 ? 2 : 3);
  take_turns((digits.blocks + kBlocksOfTask - 1) / kBlocksOfTask, [&](Turns& turns) {
    for (int64_t task; (task = turns.next()) >= 0;) {
      const int64_t begin = task * kBlocksOfTask, end = std::min(begin + kBlocksOfTask, digits.blocks);
      fill_digits(call.weights, digits, begin, end);
      const int64_t first = begin * kLanes, last = std::min(end * kLanes, call.weights.width);
      for (Coverage& coverage : call.coverages) {
        if (coverage.lines < call.grid.patch || coverage.pixels < call.grid.patch) {
          add_rest(call, first, last, coverage);
        } else {
          for (int64_t channel = first; channel < last; ++channel) coverage.rest[channel] += digits.moved[channel];
        }
      }
    }
  });
  const int64_t stride = digits.quads * 4, strip_patches = kStripTiles * kTilePatches;
  const int64_t strips = (patches + strip_patches - 1) / strip_patches;
  const int64_t groups = (digits.blocks + kGroupBlocks - 1) / kGroupBlocks;
  take_turns(strips * groups, [&](Turns& turns) {
    std::vector<uint8_t> rows(strip_patches * stride, 0);
    std::vector<Place> places(strip_patches);
    for (int64_t task, gathered = -1; (task = turns.next()) >= 0;) {
      const int64_t first = task / groups * strip_patches, last = std::min(first + strip_patches, patches);
      if (task / groups != gathered) gather(call, first, last, stride, rows.data(), places.data());
      gathered = task / groups;
      const int64_t block = task % groups * kGroupBlocks, end_block = std::min(block + kGroupBlocks, digits.blocks);
      for (int64_t at = first; at < last; at += kTilePatches) {
        const Place* here = places.data() + (at - first);
        const int64_t count = std::min(kTilePatches, last - at);
        for (int64_t b = block; b < end_block; ++b) {
          ask_for(call.target, here, count, b);
          multiply_tile(digits, b, rows.data() + (at - first) * stride, call.target, here, count);
        }
      }
    }
  });
}

bool is_half(const Tensor& tensor, const char* name) {
  const bool half = tensor.scalar_type() == ScalarType::BFloat16;
  check(half || tensor.scalar_type() == ScalarType::Float, "patch_embed: ", name, " must be float32 or bfloat16");
  return half;
}

void set_normalisation(Call& call, const std::vector<double>& mean, const std::vector<double>& std, float* scale) {
  check(mean.size() == kPatchChannels && std.size() == kPatchChannels, "patch_embed: mean and std must hold ",
        kPatchChannels, " numbers each");
  for (int c = 0; c < kPatchChannels; ++c) {
    const double centre = std::clamp(std::nearbyint(mean[c]), 0.0, 255.0);
    call.centre[c] = static_cast<uint8_t>(centre);
    call.moved[c] = static_cast<float>((centre - mean[c]) / std[c]);
    scale[c] = static_cast<float>(std[c]);
  }
}

void set_coverages(Call& call, const std::vector<float>& bias) {
  for (int64_t down = 0; down < call.grid.h; ++down) {
    for (int64_t across = 0; across < call.grid.w; ++across) {
      const int64_t lines = call.lines_of(down), pixels = call.pixels_of(across);
      const auto same = [&](const Coverage& c) { return c.lines == lines && c.pixels == pixels; };
      if (std::none_of(call.coverages.begin(), call.coverages.end(), same))
        call.coverages.push_back({lines, pixels, bias});
    }
  }
}

std::vector<float> floats_of(const Tensor& tensor) {
  const Tensor packed = torch::stable::contiguous(tensor);
  std::vector<float> values(packed.numel());
  if (is_half(packed, "bias")) {
    const auto* from = static_cast<const uint16_t*>(packed.const_data_ptr());
    std::transform(from, from + values.size(), values.begin(), [](uint16_t v) { return as_float(v); });
  } else {
    const auto* from = static_cast<const float*>(packed.const_data_ptr());
    std::copy(from, from + values.size(), values.begin());
  }
  return values;
}

Tensor patch_embed(const Tensor image, const Tensor weight, std::optional<Tensor> bias, const Tensor positions,
                   std::vector<double> mean, std::vector<double> std, int64_t h, int64_t w) {
  check(vnni_works(), "patch_embed: this processor has no AVX-512 VNNI");
  const bool pictures = image.scalar_type() == ScalarType::Byte && image.dim() == 4;
  check(weight.dim() == 4 && weight.size(1) == kPatchChannels && weight.size(2) == weight.size(3),
        "patch_embed: weight must be [D, 3, P, P]");
  const int64_t width = weight.size(0), patch = weight.size(2);
  check_patches(pictures ? image.size(3) : 0, patch, h, w);
  check(patch <= kMostPatch, "patch_embed: patches must be at most ", kMostPatch, ", got ", patch);
  check(positions.dim() == 2 && positions.size(0) == h * w && positions.size(1) == width,
        "patch_embed: positions must be [h * w, D]");
  check(!bias || (bias->dim() == 1 && bias->size(0) == width), "patch_embed: bias must be [D]");
  const Tensor pixels =
      image.stride(3) == 1 && image.stride(2) == kPatchChannels ? image : torch::stable::contiguous(image);
  const Tensor packed_weight = torch::stable::contiguous(weight),
               packed_positions = torch::stable::contiguous(positions);
  const bool half_weight = is_half(weight, "weight"), half_positions = is_half(positions, "positions");
  const bool half_tokens = half_weight && half_positions;
  Tensor tokens = torch::stable::new_empty(positions, {pixels.size(0), h * w, width},
                                           half_tokens ? ScalarType::BFloat16 : ScalarType::Float);
  if (pixels.size(0) == 0) return tokens;
  float scale[kPatchChannels];
  Call call{};
  call.grid = {pixels.size(0), pixels.size(1), pixels.size(2), pixels.stride(0), pixels.stride(1), patch, h, w};
  call.bytes = static_cast<const uint8_t*>(pixels.const_data_ptr());
  set_normalisation(call, mean, std, scale);
  call.weights = {packed_weight.const_data_ptr(), half_weight, width, patch, scale, call.centre, call.moved};
  set_coverages(call, bias ? floats_of(*bias) : std::vector<float>(width, 0.0f));
  call.target = {packed_positions.const_data_ptr(), tokens.mutable_data_ptr(), half_positions, half_tokens, width};
  fill_and_multiply(call);
  return tokens;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("patch_embed", TORCH_BOX(&patch_embed)); }

const Binding binding([](pybind11::module_& m) {
  m.def("vnni_works", &vnni_works, "Whether this processor multiplies bytes four by four (AVX-512 VNNI).");
});

}  // namespace
}  // namespace setr_fast
