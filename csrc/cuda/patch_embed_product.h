// Signature of the fused CUDA patch embedding, shared by the kernel (no torch) and its registration (no kernel).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../patch_rows.h"

namespace setr_fast {

enum class TokenType { kFloat, kBFloat16, kHalf };

// Bytes [pictures, height, width, 3] whose patches all lie inside, and what they are multiplied by.
struct PatchProduct {
  const uint8_t* image;
  PatchGrid grid;
  int shift[kPatchChannels];  // whole numbers, 0 to 255
  const void* factor;         // float16 [outputs, patch * patch * 3], values in the order of the picture
  const float* addend;        // [h * w, outputs]
  float scale;
  int64_t outputs;
};

// What the kernel asks for: patch a multiple of 16, outputs of 8, lines of the picture, factor and addend on 16 bytes.
bool fits_patch_embed_product(const PatchProduct& product);

// tokens [pictures, h * w, outputs] = scale * (bytes - shift) factor^T + addend, summed in float32.
cudaError_t launch_patch_embed_product(const PatchProduct& product, TokenType type, void* tokens, cudaStream_t stream);

}  // namespace setr_fast
