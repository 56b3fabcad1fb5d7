// Patch embedding straight from bytes: gather, conversion, matrix product and addition in one kernel. UNMEASURED: the
// tests run its threads on a CPU, no GPU has run it yet.
//
// A block makes 128 tokens x 128 channels: eight warps of 64 x 32, mma.sync m16n8k16 of float16 with float32 sums. Each
// step takes 48 values of a line of the patches (a whole line at patch 16): bytes and factors come by 16-byte cp.async,
// kStages steps in flight. A byte becomes float16 without a conversion: 0x6400 | byte is 1024 + byte, and one
// subtraction of 1024 + shift is exact. Which k is which may be chosen as long as both operands agree: a thread takes
// four neighbouring bytes, so a fragment of the picture is one 32-bit load and one of the factor a 64-bit load, and
// with rows of 48 and 96 bytes no two lanes meet in a bank. Bound by products (26 GFLOP for 16 pictures of 512 x 512 at
// width 1024). docs/design/0006-patch-embed.md
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <climits>

#include "mma.h"
#include "patch_embed_product.h"

namespace setr_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 128, kOutputs = 128;        // of a block
constexpr int kWarpTokens = 64, kWarpOutputs = 32;  // of a warp
constexpr int kDepth = 48;                          // values of a patch in a step
constexpr int kStages = 3;
constexpr int kPictureBytes = kTokens * kDepth;  // of a stage
constexpr int kFactorBytes = kOutputs * kDepth * 2;
constexpr int kStageBytes = kPictureBytes + kFactorBytes;
constexpr int kSharedBytes = kStages * kStageBytes;

__device__ __forceinline__ void store_pair(float* to, float a, float b) {
  *reinterpret_cast<float2*>(to) = float2{a, b};
}
__device__ __forceinline__ void store_pair(__nv_bfloat16* to, float a, float b) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(a, b);
}
__device__ __forceinline__ void store_pair(__half* to, float a, float b) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(a, b);
}

// Two bytes of `four` as float16, less 1024 + shift each.
__device__ __forceinline__ uint32_t centred(uint32_t four, uint32_t which, __half2 less) {
  uint32_t raised = __byte_perm(four, 0x64646464u, which);
  const __half2 values = __hsub2(*reinterpret_cast<const __half2*>(&raised), less);
  return *reinterpret_cast<const uint32_t*>(&values);
}

// What a thread copies in every step, and from where: kept from step to step, for a step moves all of it by the same.
// Tokens and outputs beyond the last are copies of the last, and never stored.
struct Copies {
  static constexpr int kOfPicture = kPictureBytes / 16, kOfFactor = kFactorBytes / 16;
  static constexpr int kPictures = (kOfPicture + kThreads - 1) / kThreads, kFactors = kOfFactor / kThreads;
  static_assert(kOfFactor % kThreads == 0);

  const uint8_t* picture[kPictures];
  const __half* factor[kFactors];
  int64_t next_line;     // from the last step of a line to the first of the next
  int in_line, of_line;  // steps of this line that were taken, and of every line

  __device__ __forceinline__ Copies(const PatchProduct& product, int64_t first_token, int64_t tokens,
                                    int64_t first_output) {
    const PatchGrid& grid = product.grid;
    const int64_t line = grid.patch * kPatchChannels, depth = grid.patch * line;
    in_line = 0;
    of_line = static_cast<int>(line) / kDepth;
    next_line = grid.line_step - line + kDepth;
#pragma unroll
    for (int i = 0; i < kPictures; ++i) {
      const int copy = threadIdx.x + i * kThreads, piece = copy % (kDepth / 16);
      const int64_t wanted = first_token + copy / (kDepth / 16), token = wanted < tokens ? wanted : tokens - 1;
      const int64_t row = token / grid.w, picture_of = row / grid.h;
      picture[i] = product.image + picture_of * grid.picture_step +
                   (row - picture_of * grid.h) * grid.patch * grid.line_step + (token - row * grid.w) * line +
                   piece * 16;
    }
#pragma unroll
    for (int i = 0; i < kFactors; ++i) {
      const int copy = threadIdx.x + i * kThreads, piece = copy % (kDepth / 8);
      const int64_t wanted = first_output + copy / (kDepth / 8);
      const int64_t row = wanted < product.outputs ? wanted : product.outputs - 1;
      factor[i] = static_cast<const __half*>(product.factor) + row * depth + piece * 8;
    }
  }

  // Starts the copies of the next step.
  __device__ __forceinline__ void start(unsigned char* stage) {
    in_line = in_line + 1 == of_line ? 0 : in_line + 1;
    const int64_t step = in_line == 0 ? next_line : kDepth;
#pragma unroll
    for (int i = 0; i < kPictures; ++i) {
      const int copy = threadIdx.x + i * kThreads;
      if ((i + 1) * kThreads <= kOfPicture || copy < kOfPicture) copy_async_16(stage + copy * 16, picture[i]);
      picture[i] += step;
    }
#pragma unroll
    for (int i = 0; i < kFactors; ++i) {
      copy_async_16(stage + kPictureBytes + (threadIdx.x + i * kThreads) * 16, factor[i]);
      factor[i] += kDepth;
    }
  }
};

__device__ __forceinline__ void multiply_step(const unsigned char* stage, const __half2 (&less)[kPatchChannels][2],
                                              float (&sums)[kWarpTokens / 16][kWarpOutputs / 8][4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const unsigned char* bytes = stage + (warp % 2 * kWarpTokens + g) * kDepth + t * 4;
  const unsigned char* factors = stage + kPictureBytes + (warp / 2 * kWarpOutputs + g) * kDepth * 2 + t * 8;
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    // k of the instruction: its pairs 2 t and 2 t + 8 are our bytes 4 t and 4 t + 2 of this sixteen.
    uint32_t b[kWarpOutputs / 8][2];
#pragma unroll
    for (int j = 0; j < kWarpOutputs / 8; ++j) {
      const auto four = *reinterpret_cast<const uint2*>(factors + j * 8 * kDepth * 2 + k * 32);
      b[j][0] = four.x;
      b[j][1] = four.y;
    }
#pragma unroll
    for (int i = 0; i < kWarpTokens / 16; ++i) {
      const auto upper = *reinterpret_cast<const uint32_t*>(bytes + i * 16 * kDepth + k * 16);
      const auto lower = *reinterpret_cast<const uint32_t*>(bytes + (i * 16 + 8) * kDepth + k * 16);
      const uint32_t a[4] = {centred(upper, 0x4140, less[k][0]), centred(lower, 0x4140, less[k][0]),
                             centred(upper, 0x4342, less[k][1]), centred(lower, 0x4342, less[k][1])};
#pragma unroll
      for (int j = 0; j < kWarpOutputs / 8; ++j) mma_16x8x16(sums[i][j], a, b[j]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    patch_embed_product_kernel(const __grid_constant__ PatchProduct product, int64_t tokens, T* __restrict__ out) {
  extern __shared__ __align__(16) unsigned char memory[];
  const PatchGrid& grid = product.grid;
  const int64_t of_picture = grid.h * grid.w;
  const int64_t first_token = int64_t{blockIdx.x} * kTokens, first_output = int64_t{blockIdx.y} * kOutputs;
  Copies copies(product, first_token, tokens, first_output);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  __half2 less[kPatchChannels][2];  // [k][pair]: channels of the bytes 16 k + 4 t on; 48 is a multiple of three
#pragma unroll
  for (int k = 0; k < kPatchChannels; ++k) {
    const int channel = (k + t) % kPatchChannels;
    const auto of = [&](int c) { return static_cast<float>(1024 + product.shift[c % kPatchChannels]); };
    less[k][0] = __floats2half2_rn(of(channel), of(channel + 1));
    less[k][1] = __floats2half2_rn(of(channel + 2), of(channel + 3));
  }
  float sums[kWarpTokens / 16][kWarpOutputs / 8][4];
#pragma unroll
  for (int i = 0; i < kWarpTokens / 16; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpOutputs / 8; ++j) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
  }
  const int steps = static_cast<int>(grid.patch * grid.patch * kPatchChannels) / kDepth;
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) copies.start(memory + step * kStageBytes);
    copy_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this step's copies are there, and everyone is done with the stage that is filled next
    const int ahead = step + kStages - 1;
    if (ahead < steps) copies.start(memory + ahead % kStages * kStageBytes);
    copy_async_commit();
    multiply_step(memory + step % kStages * kStageBytes, less, sums);
  }
#pragma unroll
  for (int i = 0; i < kWarpTokens / 16; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first_token + warp % 2 * kWarpTokens + i * 16 + half * 8 + g;
      if (token >= tokens) continue;
      const float* addend = product.addend + token % of_picture * product.outputs;
#pragma unroll
      for (int j = 0; j < kWarpOutputs / 8; ++j) {
        const int64_t output = first_output + warp / 2 * kWarpOutputs + j * 8 + t * 2;
        if (output >= product.outputs) continue;
        const auto add = *reinterpret_cast<const float2*>(addend + output);
        store_pair(out + token * product.outputs + output, fmaf(product.scale, sums[i][j][2 * half], add.x),
                   fmaf(product.scale, sums[i][j][2 * half + 1], add.y));
      }
    }
  }
}

template <class T>
cudaError_t launch(const PatchProduct& product, T* tokens, cudaStream_t stream) {
  const int64_t count = product.grid.pictures * product.grid.h * product.grid.w;
  if (count == 0) return cudaSuccess;
  const int64_t across = (count + kTokens - 1) / kTokens, down = (product.outputs + kOutputs - 1) / kOutputs;
  if (across > INT_MAX || down > 65535) return cudaErrorInvalidValue;
  const auto kernel = patch_embed_product_kernel<T>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned int>(across), static_cast<unsigned int>(down));
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(product, count, tokens);
  return cudaGetLastError();
}

}  // namespace

bool fits_patch_embed_product(const PatchProduct& product) {
  const PatchGrid& grid = product.grid;
  const auto on_16 = reinterpret_cast<uintptr_t>(product.image) | reinterpret_cast<uintptr_t>(product.factor) |
                     reinterpret_cast<uintptr_t>(product.addend) | static_cast<uintptr_t>(grid.picture_step) |
                     static_cast<uintptr_t>(grid.line_step);
  return on_16 % 16 == 0 && grid.patch % 16 == 0 && product.outputs % 8 == 0 && grid.h * grid.patch <= grid.height &&
         grid.w * grid.patch <= grid.width;
}

cudaError_t launch_patch_embed_product(const PatchProduct& product, TokenType type, void* tokens, cudaStream_t stream) {
  if (!fits_patch_embed_product(product)) return cudaErrorInvalidValue;
  switch (type) {
    case TokenType::kFloat:
      return launch(product, static_cast<float*>(tokens), stream);
    case TokenType::kBFloat16:
      return launch(product, static_cast<__nv_bfloat16*>(tokens), stream);
    case TokenType::kHalf:
      return launch(product, static_cast<__half*>(tokens), stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace setr_fast
