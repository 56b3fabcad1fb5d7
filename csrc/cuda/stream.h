// torch's current CUDA stream, and CUDA errors in words.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <stdexcept>

#include "../checks.h"

// The shim's header declares this only together with CUDA headers of torch that a CPU build of torch lacks.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace setr_fast {

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  // torch 2.11, the oldest that is taken, has this macro only, and not the one of the stable headers since 2.13.
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void cuda_check(const char* where, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(text(where, ": CUDA failed: ", cudaGetErrorString(error)));
}

}  // namespace setr_fast
