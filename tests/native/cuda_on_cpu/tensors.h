// Memory as a strict GPU would give it: NaN until written, and at its end a page that must not be touched.
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "emulator.h"

namespace cuda_on_cpu {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 16;  // torch's own is larger; 16 bytes are what kernels count on

struct Mapping {
  char* start;
  size_t bytes;
};
inline std::map<void*, Mapping> mappings;

// `bytes` of 0xff (NaN in every floating type) on 16 bytes, up to 15 bytes before a page that faults.
inline void* guarded_memory(size_t bytes) {
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const size_t pages = (padded + kPage - 1) / kPage + 2;
  auto* start =
      static_cast<char*>(mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(start, 0xff, pages * kPage);
  mprotect(start, kPage, PROT_NONE);
  mprotect(start + (pages - 1) * kPage, kPage, PROT_NONE);
  void* data = start + (pages - 1) * kPage - padded;
  mappings[data] = {start, pages * kPage};
  return data;
}

inline void release(void* data) {
  const Mapping mapping = mappings.at(data);
  mappings.erase(data);
  munmap(mapping.start, mapping.bytes);
}

inline torch::stable::Tensor guarded(torch::headeronly::IntHeaderOnlyArrayRef size, torch::headeronly::ScalarType dtype,
                                     size_t item) {
  std::vector<int64_t> sizes(size.begin(), size.end()), strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  size_t count = 1;
  for (const int64_t n : sizes) count *= static_cast<size_t>(n);
  return torch::stable::from_blob(guarded_memory(count * item), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
                                  [](void* data) { release(data); });
}

inline torch::stable::Tensor new_empty(const torch::stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size,
                                       std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  const torch::stable::Tensor one = torch::stable::new_empty(like, {1}, dtype);
  return guarded(size, one.scalar_type(), one.element_size());
}

// A copy in guarded memory.
inline torch::stable::Tensor in_guarded_memory(const torch::stable::Tensor& tensor) {
  torch::stable::Tensor copy = guarded(tensor.sizes(), tensor.scalar_type(), tensor.element_size());
  return torch::stable::copy_(copy, tensor);
}

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline torch::stable::Tensor matmul(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  return in_guarded_memory(torch::stable::matmul(a, b));
}

}  // namespace cuda_on_cpu
