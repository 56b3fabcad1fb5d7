// What the tests ask of the emulator itself.
#include "emulator.h"
#include "tensors.h"

extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_backwards(int on) {
  cuda_on_cpu::backwards = on != 0;
}
extern "C" __attribute__((visibility("default"))) int64_t cuda_on_cpu_launches() { return cuda_on_cpu::launches; }

namespace {

using torch::stable::Tensor;

Tensor guarded(const Tensor x) { return cuda_on_cpu::in_guarded_memory(x); }

STABLE_TORCH_LIBRARY_FRAGMENT(setr_fast_emulated, m) { m.def("guarded(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(setr_fast_emulated, CPU, m) { m.impl("guarded", TORCH_BOX(&guarded)); }

}  // namespace
