// Registers the CUDA confusion matrix: checks, stream, launch, and the error for an illegal id. UNMEASURED, see the
// .cu.
#include "confusion_matrix.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"
#include "stream.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxClasses = 4096;

// Packed, in one of the three types that the kernel reads; 16-bit ids are rare on a GPU and are widened.
Tensor readable(const char* what, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Byte:
    case ScalarType::Int:
    case ScalarType::Long:
      return torch::stable::contiguous(tensor);
    case ScalarType::Short:
    case ScalarType::UInt16:
      return torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Int));
    default:
      throw ShapeError(text("confusion_matrix: ", what, " must be uint8, uint16, int16, int32 or int64"));
  }
}

IndexMap index_map(const Tensor& tensor) { return {tensor.const_data_ptr(), static_cast<int>(tensor.element_size())}; }

Tensor confusion_matrix(const Tensor prediction, const Tensor labels, int64_t num_classes, int64_t ignore_index) {
  check(num_classes >= 1 && num_classes <= kMaxClasses, "confusion_matrix: num_classes must be 1 to ", kMaxClasses,
        ", got ", num_classes);
  check(prediction.numel() == labels.numel(), "confusion_matrix: labels must have as many pixels as prediction (",
        prediction.numel(), "), got ", labels.numel());
  check(prediction.get_device() == labels.get_device(), "confusion_matrix: labels must be on the prediction's device");
  const torch::stable::accelerator::DeviceGuard guard(labels.get_device());
  const Tensor packed_prediction = readable("prediction", prediction);
  const Tensor packed_labels = readable("labels", labels);
  const Tensor counts = torch::stable::new_zeros(labels, {num_classes, num_classes}, ScalarType::Long);
  Tensor notes = torch::stable::new_empty(labels, {2}, ScalarType::Long);
  notes = torch::stable::fill_(notes, static_cast<double>(kNoneIllegal));
  const cudaStream_t stream = current_stream(labels.get_device());
  cuda_check("confusion_matrix", launch_confusion_matrix(index_map(packed_prediction), index_map(packed_labels),
                                                         labels.numel(), num_classes, ignore_index,
                                                         static_cast<unsigned long long*>(counts.mutable_data_ptr()),
                                                         static_cast<IllegalIds*>(notes.mutable_data_ptr()), stream));
  // The copy waits for the kernel: an illegal id must be this call's error, not silence.
  IllegalIds found{};
  cuda_check("confusion_matrix",
             cudaMemcpyAsync(&found, notes.const_data_ptr(), sizeof(found), cudaMemcpyDeviceToHost, stream));
  cuda_check("confusion_matrix", cudaStreamSynchronize(stream));
  const bool is_label = found.label != kNoneIllegal;
  check(!is_label && found.prediction == kNoneIllegal, "confusion_matrix: every ", is_label ? "label" : "prediction",
        " must be 0 to ", num_classes - 1, " or the ignored label ", ignore_index, ", got ",
        is_label ? found.label : found.prediction);
  return counts;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CUDA, m) { m.impl("confusion_matrix", TORCH_BOX(&confusion_matrix)); }

}  // namespace
}  // namespace setr_fast
