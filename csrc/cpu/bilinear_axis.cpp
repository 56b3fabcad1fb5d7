// Shows the arithmetic of ../bilinear.h to the tests.
#include "../bilinear.h"
#include "../bindings.h"
#include "../checks.h"

namespace setr_fast {
namespace {

namespace py = pybind11;

template <class Real>
py::tuple table(int64_t in, int64_t out, bool align_corners) {
  const auto axis = make_axis<Real>(in, out, align_corners);
  py::array_t<int64_t> low(out), high(out), begin(in), end(in);
  py::array_t<Real> weight(out);
  for (int64_t at = 0; at < out; ++at) {
    const auto mix = mix_at(axis, at);
    low.mutable_at(at) = mix.low;
    high.mutable_at(at) = mix.high;
    weight.mutable_at(at) = mix.high_weight;
  }
  for (int64_t source = 0; source < in; ++source) {
    const auto span = targets_of(axis, source);
    begin.mutable_at(source) = span.begin;
    end.mutable_at(source) = span.end;
  }
  return py::make_tuple(low, high, weight, begin, end);
}

py::tuple bilinear_axis(int64_t in, int64_t out, bool align_corners, bool wide) {
  check(in >= 1 && out >= 1, "bilinear_axis: lengths must be positive, got ", pair_text(in, out));
  return wide ? table<double>(in, out, align_corners) : table<float>(in, out, align_corners);
}

const Binding binding([](py::module_& m) {
  m.def("bilinear_axis", &bilinear_axis, py::arg("size"), py::arg("out"), py::arg("align_corners"), py::arg("wide"),
        "Sources and weight of each output pixel, and the outputs of each source: low, high, weight, begin, end.");
});

}  // namespace
}  // namespace setr_fast
