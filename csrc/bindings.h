// How a source file adds functions to the Python module: a static Binding beside the function, no central list.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

namespace setr_fast {

class Binding {
 public:
  using Bind = void (*)(pybind11::module_&);

  explicit Binding(Bind bind) { all().push_back(bind); }

  static std::vector<Bind>& all() {
    static std::vector<Bind> bindings;
    return bindings;
  }
};

// An array of exactly this dtype, rows back to back. Other strides are copied, a dtype that would lose values is a
// TypeError.
template <class T>
using Packed = pybind11::array_t<T, pybind11::array::c_style>;

}  // namespace setr_fast
