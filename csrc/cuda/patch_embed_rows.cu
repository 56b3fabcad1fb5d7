// The patches of pictures of bytes as rows of a matrix. UNMEASURED: the tests run its threads on a CPU, no GPU has.
//
// A thread turns 16 bytes of a line of a patch into 16 values: one 16-byte load and, for 16-bit values in the picture's
// own order, two 16-byte stores, wherever the picture's lines start on 16 bytes. Any other patch or picture goes byte
// by byte. Bound by bytes: one read and two (16 bits) or four (32 bits) written per value; the rows of a batch of 16 at
// 512 x 512 are 25 MB and stay in L2 for the product behind it. docs/design/0006-patch-embed.md
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <climits>

#include "patch_embed_rows.h"

namespace setr_fast {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void convert(float value, float& to) { to = value; }
__device__ __forceinline__ void convert(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }
__device__ __forceinline__ void convert(float value, __half& to) { to = __float2half_rn(value); }

template <class T, bool kAligned>
struct DeviceMemory {
  const uint8_t* __restrict__ image;
  T* __restrict__ rows;

  __device__ __forceinline__ void load(int64_t from, int count, uint8_t (&bytes)[kPiece]) const {
    if (kAligned && count == kPiece) {
      const uint4 four = *reinterpret_cast<const uint4*>(image + from);
      const unsigned int words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < kPiece; ++i) bytes[i] = static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4)));
      return;
    }
#pragma unroll
    for (int i = 0; i < kPiece; ++i) bytes[i] = i < count ? image[from + i] : uint8_t{0};
  }

  __device__ __forceinline__ void store(int64_t to, int count, const float (&values)[kPiece]) const {
    constexpr int kVector = 16 / sizeof(T);
    struct alignas(16) Vector {
      T of[kVector];
    };
    if constexpr (kAligned) {
#pragma unroll
      for (int first = 0; first < kPiece; first += kVector) {
        Vector vector;
#pragma unroll
        for (int i = 0; i < kVector; ++i) convert(values[first + i], vector.of[i]);
        *reinterpret_cast<Vector*>(rows + to + first) = vector;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        if (i < count) convert(values[i], rows[to + i]);
      }
    }
  }

  __device__ __forceinline__ void put(int64_t to, float value) const { convert(value, rows[to]); }
};

template <class T, bool kAligned, bool kPlanar>
__global__ void __launch_bounds__(kThreads)
    patch_embed_rows_kernel(const uint8_t* __restrict__ image, PatchGrid grid, ByteScaling scaling, int64_t threads,
                            T* __restrict__ rows) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index < threads) patch_piece(grid, scaling, kPlanar, index, DeviceMemory<T, kAligned>{image, rows});
}

bool on_16_bytes(const uint8_t* image, const PatchGrid& grid) {
  const auto steps = reinterpret_cast<uintptr_t>(image) | static_cast<uintptr_t>(grid.picture_step) |
                     static_cast<uintptr_t>(grid.line_step) | static_cast<uintptr_t>(grid.patch * kPatchChannels);
  return steps % kPiece == 0;
}

template <class T>
cudaError_t launch(const uint8_t* image, const PatchGrid& grid, const ByteScaling& scaling, bool planar, T* rows,
                   cudaStream_t stream) {
  const int64_t threads = patch_lines(grid) * pieces_of_line(grid);
  if (threads == 0) return cudaSuccess;
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  const auto count = static_cast<unsigned int>(blocks);
  if (planar) {
    patch_embed_rows_kernel<T, false, true><<<count, kThreads, 0, stream>>>(image, grid, scaling, threads, rows);
  } else if (on_16_bytes(image, grid)) {
    patch_embed_rows_kernel<T, true, false><<<count, kThreads, 0, stream>>>(image, grid, scaling, threads, rows);
  } else {
    patch_embed_rows_kernel<T, false, false><<<count, kThreads, 0, stream>>>(image, grid, scaling, threads, rows);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_patch_embed_rows(const uint8_t* image, const PatchGrid& grid, const ByteScaling& scaling,
                                    bool planar, RowType type, void* rows, cudaStream_t stream) {
  switch (type) {
    case RowType::kFloat:
      return launch(image, grid, scaling, planar, static_cast<float*>(rows), stream);
    case RowType::kBFloat16:
      return launch(image, grid, scaling, planar, static_cast<__nv_bfloat16*>(rows), stream);
    case RowType::kHalf:
      return launch(image, grid, scaling, planar, static_cast<__half*>(rows), stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace setr_fast
