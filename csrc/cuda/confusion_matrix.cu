// Confusion matrix of two index maps on a GPU. UNMEASURED: the tests run its threads on a CPU, no GPU has run it yet.
//
// Blocks walk the pixels in a grid stride. Where K * K 32-bit counters fit into shared memory (K <= 110 without opting
// in to more, all published data sets but ADE20K), a block counts there and adds its table to the result once;
// otherwise the lanes of a warp that met the same pair add to it in L2 together. Integers only: the result is the same
// in every run. Bound by bytes when ids are wide, by atomics on one address when a picture is mostly one class.
#include "confusion_matrix.h"
#include "count_together.h"

namespace setr_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 4;                           // pixels of a thread whose loads are in flight at once
constexpr int kBlocksPerProcessor = 4;                 // hides the latency of loads; few tables to add at the end
constexpr int64_t kSharedBytes = 48 * 1024;            // what every card grants without opting in
constexpr int64_t kPixelsPerBlock = int64_t{1} << 31;  // a 32-bit counter cannot overflow below this

// Where a pixel counts, label * classes + prediction; -1 where it does not. An illegal id is noted.
__device__ __forceinline__ int cell_of(int64_t predicted, int64_t label, int64_t classes, int64_t ignore,
                                       IllegalIds* illegal) {
  if (label == ignore) return -1;
  if (static_cast<uint64_t>(label) >= static_cast<uint64_t>(classes)) {
    atomicMax(&illegal->label, static_cast<long long>(label));
    return -1;
  }
  if (static_cast<uint64_t>(predicted) >= static_cast<uint64_t>(classes)) {
    atomicMax(&illegal->prediction, static_cast<long long>(predicted));
    return -1;
  }
  return static_cast<int>(label * classes + predicted);
}

template <class P, class L, bool kShared>
__global__ void __launch_bounds__(kThreads)
    confusion_matrix_kernel(const P* __restrict__ prediction,  // [pixels]
                            const L* __restrict__ labels,      // [pixels]
                            int64_t pixels, int64_t classes, int64_t ignore,
                            unsigned long long* __restrict__ counts,  // [classes, classes]
                            IllegalIds* __restrict__ illegal) {
  extern __shared__ unsigned int table[];
  const int cells = static_cast<int>(classes * classes);
  if constexpr (kShared) {
    for (int cell = threadIdx.x; cell < cells; cell += kThreads) table[cell] = 0;
    __syncthreads();
  }
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kTogether;
  // All lanes stay in the loop for as long as one has pixels: they count together.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kTogether; first < pixels; first += step) {
    int64_t predicted[kTogether], label[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int64_t i = first + j * kThreads + threadIdx.x;
      predicted[j] = i < pixels ? static_cast<int64_t>(prediction[i]) : 0;
      label[j] = i < pixels ? static_cast<int64_t>(labels[i]) : ignore;
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int cell = cell_of(predicted[j], label[j], classes, ignore, illegal);
      if constexpr (kShared) {
        if (cell >= 0) atomicAdd(&table[cell], 1u);
      } else {
        count_together(counts, cell);
      }
    }
  }
  if constexpr (kShared) {
    __syncthreads();
    for (int cell = threadIdx.x; cell < cells; cell += kThreads) {
      if (table[cell] != 0) atomicAdd(&counts[cell], static_cast<unsigned long long>(table[cell]));
    }
  }
}

struct Launch {
  int64_t pixels, classes, ignore;
  unsigned long long* counts;
  IllegalIds* illegal;
  cudaStream_t stream;

  template <class P, class L>
  cudaError_t operator()(const P* prediction, const L* labels) const {
    int device = 0, processors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    const int64_t wanted = (pixels + kThreads * kTogether - 1) / (kThreads * kTogether);
    const int64_t resident = static_cast<int64_t>(processors) * kBlocksPerProcessor;
    const int64_t blocks = wanted < resident ? wanted : resident;
    const int64_t bytes = classes * classes * static_cast<int64_t>(sizeof(unsigned int));
    const dim3 grid(static_cast<unsigned int>(blocks));
    if (bytes <= kSharedBytes && pixels / blocks < kPixelsPerBlock) {
      confusion_matrix_kernel<P, L, true>
          <<<grid, kThreads, bytes, stream>>>(prediction, labels, pixels, classes, ignore, counts, illegal);
    } else {
      confusion_matrix_kernel<P, L, false>
          <<<grid, kThreads, 0, stream>>>(prediction, labels, pixels, classes, ignore, counts, illegal);
    }
    return cudaGetLastError();
  }
};

template <class Then>
cudaError_t with_ids(IndexMap map, const Then& then) {
  if (map.bytes == 1) return then(static_cast<const uint8_t*>(map.ids));
  if (map.bytes == 4) return then(static_cast<const int32_t*>(map.ids));
  if (map.bytes == 8) return then(static_cast<const int64_t*>(map.ids));
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_confusion_matrix(IndexMap prediction, IndexMap labels, int64_t pixels, int64_t classes,
                                    int64_t ignore, unsigned long long* counts, IllegalIds* illegal,
                                    cudaStream_t stream) {
  if (pixels == 0) return cudaSuccess;
  const Launch launch{pixels, classes, ignore, counts, illegal, stream};
  return with_ids(prediction,
                  [&](const auto* p) { return with_ids(labels, [&](const auto* l) { return launch(p, l); }); });
}

}  // namespace setr_fast
