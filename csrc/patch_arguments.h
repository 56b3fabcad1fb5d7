// What the gather of patches is called with, checked and in its own types; the same on the CPU and on CUDA.
#pragma once

#include <cstdint>
#include <vector>

#include "checks.h"
#include "patch_rows.h"

namespace setr_fast {

// `channels` of a picture of bytes [B, H, W, channels], or 0 for anything else.
inline void check_patches(int64_t channels, int64_t patch, int64_t h, int64_t w) {
  check(channels == kPatchChannels, "patch_embed_rows: image must be uint8 [B, H, W, ", kPatchChannels, "]");
  check(patch >= 1 && h >= 1 && w >= 1, "patch_embed_rows: patch and grid must be at least 1, got ", patch, " and ",
        pair_text(h, w));
}

inline ByteScaling byte_scaling(const std::vector<double>& shift, const std::vector<double>& scale,
                                const std::vector<double>& fill) {
  check(shift.size() == kPatchChannels && scale.size() == kPatchChannels && fill.size() == kPatchChannels,
        "patch_embed_rows: shift, scale and fill must hold ", kPatchChannels, " numbers each");
  ByteScaling scaling{};
  for (int channel = 0; channel < kPatchChannels; ++channel) {
    scaling.shift[channel] = static_cast<float>(shift[channel]);
    scaling.scale[channel] = static_cast<float>(scale[channel]);
    scaling.fill[channel] = static_cast<float>(fill[channel]);
  }
  return scaling;
}

}  // namespace setr_fast
