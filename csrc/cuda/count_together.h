// Counting by many threads: lanes of a warp with the same cell add to it once.
#pragma once

#include <cuda_runtime.h>

namespace setr_fast {

// Every lane of the warp must come here, those with a negative cell count nothing. Neighbouring pixels are mostly of
// one class, and additions to one address wait for each other.
__device__ __forceinline__ void count_together(unsigned long long* counts, int cell) {
  const unsigned int same = __match_any_sync(0xffffffffu, cell);
  const bool first = static_cast<int>(threadIdx.x % 32) == __ffs(static_cast<int>(same)) - 1;
  if (first && cell >= 0) atomicAdd(&counts[cell], static_cast<unsigned long long>(__popc(same)));
}

}  // namespace setr_fast
