// Signature of the CUDA gather of patches, shared by the kernel (no torch) and its registration (no kernel).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../patch_rows.h"

namespace setr_fast {

enum class RowType { kFloat, kBFloat16, kHalf };

// Writes [pictures * h * w, patch * patch * 3] values of `type` from bytes; rows start on 16 bytes, as torch's do.
cudaError_t launch_patch_embed_rows(const uint8_t* image, const PatchGrid& grid, const ByteScaling& scaling,
                                    bool planar, RowType type, void* rows, cudaStream_t stream);

}  // namespace setr_fast
