// Signatures of the CUDA kernels behind upsample_conv, shared by them (no torch) and their registration (no kernel).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../upsample_combine.h"

namespace setr_fast {

enum class MapType { kFloat, kBFloat16, kHalf };

// y = act(sum over the taps of z, interpolated at the tap, + bias). `side` is 1 or 3; bias may be null.
// z starts on 16 bytes.
cudaError_t launch_upsample_combine(MapType type, int side, const TapShape& shape, const void* z, const void* bias,
                                    bool relu, void* y, cudaStream_t stream);

// The gradient of every value of z, including the padding channels (zero). z starts on 16 bytes.
cudaError_t launch_upsample_combine_backward(MapType type, int side, const TapShape& shape, const void* grad, void* z,
                                             cudaStream_t stream);

constexpr int kPartial = 1 + 2 * kLanes;  // count, means and spreads of eight channels

// Partials that the kernel below leaves, per group of kLanes channels.
int64_t statistics_blocks(const TapShape& shape);

// The first without ReLU, and the statistics of what each block wrote: partials [blocks, groups, kPartial], zero
// before.
cudaError_t launch_upsample_combine_statistics(MapType type, int side, const TapShape& shape, const void* z,
                                               const void* bias, void* y, float* partials, cudaStream_t stream);

// Mean and sum of squared deviations of each channel from partials [blocks, groups, kPartial].
cudaError_t launch_upsample_statistics_merge(const float* partials, int64_t blocks, int64_t channels, int64_t groups,
                                             float* mean, float* spread, cudaStream_t stream);

}  // namespace setr_fast
