// A label map's training crop in one pass: nearest resize, crop, flip, id table, padding. Bound by memory.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "../bindings.h"
#include "../checks.h"
#include "axis.h"

namespace setr_fast {
namespace {

namespace py = pybind11;

// Returns false, and the id, at the first pixel that the table does not cover.
template <class T>
bool augment(const T* label, Size source, Size size, Size offset, Size crop, bool flip, const uint8_t* table,
             int64_t entries, uint8_t fill, uint8_t* out, int64_t* illegal) {
  const Size valid = {covered(size[0], offset[0], crop[0]), covered(size[1], offset[1], crop[1])};
  const auto rows = nearest_axis(source[0], size[0], offset[0], valid[0]);
  auto columns = nearest_axis(source[1], size[1], offset[1], valid[1]);
  if (flip) std::reverse(columns.begin(), columns.end());
  for (int64_t y = 0; y < crop[0]; ++y) {
    uint8_t* to = out + y * crop[1];
    if (y >= valid[0]) {
      std::fill(to, to + crop[1], fill);
      continue;
    }
    const T* from = label + rows[y] * source[1];
    for (int64_t x = 0; x < valid[1]; ++x) {
      const auto id = static_cast<int64_t>(from[columns[x]]);
      if (id < 0 || id >= entries) {
        *illegal = id;
        return false;
      }
      to[x] = table ? table[id] : static_cast<uint8_t>(id);
    }
    std::fill(to + valid[1], to + crop[1], fill);
  }
  return true;
}

template <class T>
py::array augment_label(const Packed<T>& label, Size size, Size offset, Size crop, bool flip,
                        const std::optional<Packed<uint8_t>>& table, int64_t fill, std::optional<Packed<uint8_t>> out) {
  check(label.ndim() == 2, "augment_label: label must be [H, W], got ", label.ndim(), " dimensions");
  check(fill >= 0 && fill <= 255, "augment_label: fill must be 0 to 255, got ", fill);
  check(!table || (table->ndim() == 1 && (table->shape(0) == 256 || table->shape(0) == 65536)),
        "augment_label: table must have 256 or 65536 entries, got ", table ? table->size() : 0);
  const Size source = {label.shape(0), label.shape(1)};
  check_geometry("augment_label", source, size, offset, crop);
  if (!out) out = Packed<uint8_t>({crop[0], crop[1]});
  check(out->ndim() == 2 && out->shape(0) == crop[0] && out->shape(1) == crop[1], "augment_label: out must be [",
        crop[0], ", ", crop[1], "], got ", out->size(), " values");
  const T* from = label.data();
  uint8_t* to = out->mutable_data();
  const int64_t entries = table ? table->size() : 256;
  int64_t illegal = 0;
  bool legal;
  {
    py::gil_scoped_release release;
    legal = augment(from, source, size, offset, crop, flip, table ? table->data() : nullptr, entries,
                    static_cast<uint8_t>(fill), to, &illegal);
  }
  check(legal, "augment_label: every id must be 0 to ", entries - 1, ", got ", illegal,
        "; correct the mask, or give a table that covers it");
  return *out;
}

py::array augment_any_label(const py::array& label, Size size, Size offset, Size crop, bool flip,
                            const std::optional<Packed<uint8_t>>& table, int64_t fill,
                            std::optional<Packed<uint8_t>> out) {
  if (py::isinstance<py::array_t<uint8_t>>(label)) {
    return augment_label<uint8_t>(label, size, offset, crop, flip, table, fill, std::move(out));
  }
  if (py::isinstance<py::array_t<uint16_t>>(label)) {
    return augment_label<uint16_t>(label, size, offset, crop, flip, table, fill, std::move(out));
  }
  check(py::isinstance<py::array_t<int32_t>>(label), "augment_label: label must be uint8, uint16 or int32, got ",
        std::string(py::str(label.dtype())));
  return augment_label<int32_t>(label, size, offset, crop, flip, table, fill, std::move(out));
}

const Binding binding([](py::module_& m) {
  m.def("augment_label", &augment_any_label, py::arg("label"), py::arg("size"), py::arg("offset"), py::arg("crop"),
        py::arg("flip"), py::arg("table").none(true), py::arg("fill"), py::arg("out").noconvert() = py::none(),
        "Resize, crop, flip and translate ids; see setr_fast.ops.augment_label. `out` is written in place.");
});

}  // namespace
}  // namespace setr_fast
