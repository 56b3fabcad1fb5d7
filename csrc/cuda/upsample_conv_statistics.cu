// The combine kernel of upsample_conv with mean and spread of every output channel, for the batch norm behind it.
// UNMEASURED: the tests run its threads on a CPU, no GPU has run it yet.
//
// A thread writes its strip (upsample_conv.cu) and keeps mean and sum of squared deviations of what it wrote, value by
// value (Welford), so that a mean far from zero costs no digits. A block merges its threads of the same channels and
// leaves one partial per group of eight; a second kernel merges the blocks' partials, one block per group. Everything
// is merged in a fixed order (Chan et al. 1983): two runs give the same bits. Saves a pass over y, the largest tensor.
// docs/design/0005-upsample-conv.md
#include <climits>

#include "upsample_conv.h"
#include "upsample_conv_memory.h"

namespace setr_fast {
namespace {

constexpr int kThreads = 128;
constexpr int kMergeThreads = 512;  // a group's partials are merged by one block: its loads must hide each other's wait
template <class T>
constexpr int kBlocks = sizeof(T) == 2 ? 3 : 2;  // per multiprocessor: as many as registers allow without a spill

// Mean and spread (sum of squared deviations) of `count` values in each of eight channels.
struct Running {
  float count;
  Lanes mean, spread;

  __device__ __forceinline__ void add(const Lanes& values) {
    count += 1.0f;
    const float share = 1.0f / count;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const float off = values.of[i] - mean.of[i];
      mean.of[i] += off * share;
      spread.of[i] += off * (values.of[i] - mean.of[i]);
    }
  }

  // The order of values in memory: count, means, spreads.
  __device__ __forceinline__ void merge(const float* other) {
    const float more = other[0];
    if (more == 0.0f) return;
    const float share = more / (count + more);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const float off = other[1 + i] - mean.of[i];
      mean.of[i] += off * share;
      spread.of[i] += other[1 + kLanes + i] + off * off * count * share;
    }
    count += more;
  }

  __device__ __forceinline__ void save(float* to) const {
    to[0] = count;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      to[1 + i] = mean.of[i];
      to[1 + kLanes + i] = spread.of[i];
    }
  }
};

__device__ __forceinline__ Running nothing_yet() {
  Running running;
  running.count = 0.0f;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) running.mean.of[i] = running.spread.of[i] = 0.0f;
  return running;
}

// As ForwardMemory, and counts what is written as it is written: rounded.
template <class T, bool kWhole>
struct CountingMemory {
  ForwardMemory<T, kWhole> forward;
  Running* running;

  __device__ __forceinline__ Lanes load_z(int64_t line, int32_t offset) const { return forward.load_z(line, offset); }
  __device__ __forceinline__ Lanes start(int64_t channel) const { return forward.start(channel); }
  __device__ __forceinline__ void finish(int64_t pixel, int64_t channel, Lanes lanes) const {
    forward.finish(pixel, channel, lanes);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      T rounded;
      narrow(lanes.of[i], rounded);
      lanes.of[i] = wide(rounded);
    }
    running->add(lanes);
  }
};

template <class T, int kSide, bool kWhole>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    upsample_combine_statistics_kernel(TapShape shape, int64_t threads, const T* __restrict__ z,
                                       const T* __restrict__ bias, T* __restrict__ y,
                                       float* __restrict__ partials) {  // [blocks, groups, kPartial]
  extern __shared__ float kept[];                                       // [kThreads, kPartial]
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  Running running = nothing_yet();
  if (index < threads) {
    const ForwardMemory<T, kWhole> forward{z, y, bias, shape.channels, false};
    combine_strip<kSide>(shape, CountingMemory<T, kWhole>{forward, &running}, index);
  }
  running.save(kept + threadIdx.x * kPartial);
  __syncthreads();
  const int64_t groups = shape.padded / kLanes;  // threads that are so far apart have the same channels
  if (threadIdx.x >= groups) return;
  for (int64_t other = threadIdx.x + groups; other < kThreads; other += groups) running.merge(kept + other * kPartial);
  running.save(partials + (blockIdx.x * groups + index % groups) * kPartial);
}

__global__ void __launch_bounds__(kMergeThreads)
    upsample_statistics_merge_kernel(const float* __restrict__ partials, int64_t blocks, int64_t channels,
                                     float* __restrict__ mean, float* __restrict__ spread) {
  extern __shared__ float kept[];  // [kMergeThreads, kPartial]
  Running running = nothing_yet();
  for (int64_t block = threadIdx.x; block < blocks; block += kMergeThreads) {
    running.merge(partials + (block * gridDim.x + blockIdx.x) * kPartial);
  }
  running.save(kept + threadIdx.x * kPartial);
  for (unsigned int apart = kMergeThreads / 2; apart > 0; apart /= 2) {
    __syncthreads();
    if (threadIdx.x >= apart) continue;
    running.merge(kept + (threadIdx.x + apart) * kPartial);
    running.save(kept + threadIdx.x * kPartial);
  }
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const int64_t channel = int64_t{blockIdx.x} * kLanes + i;
    if (channel >= channels) continue;
    mean[channel] = running.mean.of[i];
    spread[channel] = running.spread.of[i];
  }
}

constexpr int kPartialBytes = kPartial * static_cast<int>(sizeof(float));

}  // namespace

int64_t statistics_blocks(const TapShape& shape) { return (combine_threads(shape) + kThreads - 1) / kThreads; }

cudaError_t launch_upsample_combine_statistics(MapType type, int side, const TapShape& shape, const void* z,
                                               const void* bias, void* y, float* partials, cudaStream_t stream) {
  const int64_t blocks = statistics_blocks(shape);
  if (blocks == 0) return cudaSuccess;
  if (!addressable(shape, side) || blocks > INT_MAX) return cudaErrorInvalidValue;
  return with_kind(type, side, [&]<class T, int kSide>() {
    const auto kernel = whole(shape, y) ? upsample_combine_statistics_kernel<T, kSide, true>
                                        : upsample_combine_statistics_kernel<T, kSide, false>;
    kernel<<<static_cast<unsigned int>(blocks), kThreads, kThreads * kPartialBytes, stream>>>(
        shape, combine_threads(shape), static_cast<const T*>(z), static_cast<const T*>(bias), static_cast<T*>(y),
        partials);
    return cudaGetLastError();
  });
}

cudaError_t launch_upsample_statistics_merge(const float* partials, int64_t blocks, int64_t channels, int64_t groups,
                                             float* mean, float* spread, cudaStream_t stream) {
  if (groups == 0) return cudaSuccess;
  if (groups > INT_MAX) return cudaErrorInvalidValue;
  upsample_statistics_merge_kernel<<<static_cast<unsigned int>(groups), kMergeThreads, kMergeThreads * kPartialBytes,
                                     stream>>>(partials, blocks, channels, mean, spread);
  return cudaGetLastError();
}

}  // namespace setr_fast
