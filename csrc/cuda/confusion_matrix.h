// Signature of the CUDA confusion matrix, shared by the kernel (no torch) and its registration (no kernel).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace setr_fast {

// An index map in device memory: uint8, int32 or int64 ids, told apart by their bytes.
struct IndexMap {
  const void* ids;
  int bytes;
};

// The first illegal ids met, kept as maxima so that the outcome does not depend on the order of blocks.
// Each holds kNoneIllegal until an illegal id raises it.
struct IllegalIds {
  long long label;
  long long prediction;
};

constexpr long long kNoneIllegal = INT64_MIN;

// Adds every counted pixel to counts [classes, classes] (zeroed by the caller) and notes illegal ids.
cudaError_t launch_confusion_matrix(IndexMap prediction, IndexMap labels, int64_t pixels, int64_t classes,
                                    int64_t ignore, unsigned long long* counts, IllegalIds* illegal,
                                    cudaStream_t stream);

}  // namespace setr_fast
