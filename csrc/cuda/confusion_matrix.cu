// Confusion matrix of two index maps on a GPU. UNMEASURED: the tests run its threads on a CPU, no GPU has run it yet.
//
// Blocks walk the pixels in a grid stride. Where K * K 32-bit counters fit into shared memory (K <= 110 without opting
// in to more, all published data sets but ADE20K), a block counts there and adds its table to the result once;
// otherwise each pixel is one 64-bit atomic in L2. Integers only: the result is the same in every run.
// Bound by bytes when ids are wide, by atomics on one address when a picture is mostly one class.
#include "confusion_matrix.h"

namespace setr_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerProcessor = 4;                 // hides the latency of loads; few tables to add at the end
constexpr int64_t kSharedBytes = 48 * 1024;            // what every card grants without opting in
constexpr int64_t kPixelsPerBlock = int64_t{1} << 31;  // a 32-bit counter cannot overflow below this

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
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pixels; i += step) {
    const auto label = static_cast<int64_t>(labels[i]);
    if (label == ignore) continue;
    const auto predicted = static_cast<int64_t>(prediction[i]);
    if (static_cast<uint64_t>(label) >= static_cast<uint64_t>(classes)) {
      atomicMax(&illegal->label, static_cast<long long>(label));
    } else if (static_cast<uint64_t>(predicted) >= static_cast<uint64_t>(classes)) {
      atomicMax(&illegal->prediction, static_cast<long long>(predicted));
    } else if constexpr (kShared) {
      atomicAdd(&table[label * classes + predicted], 1u);
    } else {
      atomicAdd(&counts[label * classes + predicted], 1ull);
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
    const int64_t wanted = (pixels + kThreads - 1) / kThreads;
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
