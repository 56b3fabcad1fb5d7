// The Python module setr_fast._native. Loading it adds the kernels of csrc/cpu to the torch ops of the namespace
// setr_fast_native (each file registers its own); torch must have been imported before.
#include <torch/headeronly/version.h>

#include <cstdio>  // defines __GLIBC__ for variants.h
#include <map>
#include <string>

#include "bindings.h"
#include "checks.h"
#include "variants.h"

namespace {

std::map<std::string, std::string> build_info() {
  char target[19];
  std::snprintf(target, sizeof(target), "0x%016llx", static_cast<unsigned long long>(TORCH_TARGET_VERSION));
  return {
      {"version", SETR_FAST_VERSION}, {"compiler", SETR_FAST_COMPILER},
      {"flags", SETR_FAST_FLAGS},     {"torch_headers", TORCH_VERSION},
      {"torch_target", target},       {"cpu_variants", SETR_FAST_VARIANT_NAMES},
      {"cuda", SETR_FAST_CUDA},       {"cuda_archs", SETR_FAST_CUDA_ARCHS},
  };
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled kernels of setr_fast. Use them through setr_fast.ops.";
  pybind11::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const setr_fast::ShapeError& e) {
      pybind11::set_error(pybind11::module_::import("setr_fast.errors").attr("ShapeError"), e.what());
    }
  });
  m.def("build_info", &build_info, "How this file was compiled, as text.");
  for (auto bind : setr_fast::Binding::all()) bind(m);
}
