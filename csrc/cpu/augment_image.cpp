// One pass from a decoded picture to a normalised training crop: resize, crop, flip, colour steps, normalise, pad.
//
// Only the crop's pixels are computed. Per output row: the two source rows it mixes are resampled along x (kept for the
// next row, which often mixes them again), mixed, coloured in place, and written through one float table per channel.
// Bound by arithmetic of the x pass and, with HSV, by its table look-ups; see setr_fast/ops/augment_image.py for rules.
#include <cstring>
#include <optional>

#include "../bindings.h"
#include "../checks.h"
#include "../variants.h"
#include "axis.h"
#include "colour.h"

namespace setr_fast {
namespace {

namespace py = pybind11;

struct Picture {
  const uint8_t* pixels;  // [height, width, 3]
  Size size;
  const uint8_t* row(int64_t y) const { return pixels + y * size[1] * 3; }
};

// Mix columns: out [count, 3] holds 1/128 levels, so that 255 still fits 16 bits.
SETR_FAST_VARIANTS void mix_columns(const uint8_t* row, const int32_t* low, const int32_t* high,
                                    const int16_t* low_weight, const int16_t* high_weight, int64_t count,
                                    int16_t* out) {
  for (int64_t x = 0; x < count; ++x) {
    const uint8_t* a = row + 3 * static_cast<int64_t>(low[x]);
    const uint8_t* b = row + 3 * static_cast<int64_t>(high[x]);
    const int32_t p = low_weight[x], q = high_weight[x];
    for (int c = 0; c < 3; ++c) out[3 * x + c] = static_cast<int16_t>((a[c] * p + b[c] * q) >> 4);
  }
}

SETR_FAST_VARIANTS void mix_rows(const int16_t* a, const int16_t* b, int16_t p, int16_t q, int64_t count,
                                 uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t above = (static_cast<int32_t>(a[i]) * p) >> 16;
    const int32_t below = (static_cast<int32_t>(b[i]) * q) >> 16;
    out[i] = static_cast<uint8_t>((above + below + 2) >> 2);
  }
}

// OpenCV hands an exact halving of both sides to its area routine: the mean of four pixels.
SETR_FAST_VARIANTS void halve(const uint8_t* upper, const uint8_t* lower, int64_t count, uint8_t* out) {
  for (int64_t x = 0; x < count; ++x) {
    for (int c = 0; c < 3; ++c) {
      const int64_t i = 6 * x + c;
      out[3 * x + c] = static_cast<uint8_t>((upper[i] + upper[i + 3] + lower[i] + lower[i + 3] + 2) >> 2);
    }
  }
}

// Hands out rows of the resized picture, top to bottom, restricted to the crop's columns.
class Resizer {
 public:
  Resizer(Picture picture, Size size, Size offset, Size covered)
      : picture_(picture),
        offset_(offset),
        count_(covered[1]),
        same_(size == picture.size),
        halved_(picture.size[0] == 2 * size[0] && picture.size[1] == 2 * size[1]) {
    if (same_ || halved_) return;
    rows_ = linear_axis(picture.size[0], size[0], offset[0], covered[0], false);
    columns_ = linear_axis(picture.size[1], size[1], offset[1], covered[1], true);
    for (auto& mixed : mixed_) mixed.resize(3 * count_);
  }

  void row(int64_t y, uint8_t* out) {
    const int64_t left = offset_[1];
    if (same_) {
      std::memcpy(out, picture_.row(offset_[0] + y) + 3 * left, 3 * count_);
    } else if (halved_) {
      const int64_t top = 2 * (offset_[0] + y);
      halve(picture_.row(top) + 6 * left, picture_.row(top + 1) + 6 * left, count_, out);
    } else {
      const int16_t* above = mixed(rows_.low[y], rows_.high[y]);
      const int16_t* below = mixed(rows_.high[y], rows_.low[y]);
      mix_rows(above, below, rows_.low_weight[y], rows_.high_weight[y], 3 * count_, out);
    }
  }

 private:
  // The source row `wanted` mixed along x; `other` is the one that must stay.
  const int16_t* mixed(int32_t wanted, int32_t other) {
    for (int i = 0; i < 2; ++i) {
      if (held_[i] == wanted) return mixed_[i].data();
    }
    const int slot = held_[0] == other ? 1 : 0;
    mix_columns(picture_.row(wanted), columns_.low.data(), columns_.high.data(), columns_.low_weight.data(),
                columns_.high_weight.data(), count_, mixed_[slot].data());
    held_[slot] = wanted;
    return mixed_[slot].data();
  }

  Picture picture_;
  Size offset_;
  int64_t count_;
  bool same_, halved_;
  LinearAxis rows_, columns_;
  std::vector<int16_t> mixed_[2];
  int32_t held_[2] = {-1, -1};
};

struct Colour {
  const uint8_t* pre;         // [256] or null
  const uint8_t* saturation;  // [256] or null
  int64_t hue;
  const uint8_t* post;     // [256] or null
  const float* normalise;  // [3, 256]
};

void augment(Picture picture, Size size, Size offset, Size crop, bool flip, const Colour& colour, float* out) {
  const Size valid = {covered(size[0], offset[0], crop[0]), covered(size[1], offset[1], crop[1])};
  const int64_t plane = crop[0] * crop[1];
  const bool hsv = colour.saturation != nullptr || colour.hue != 0;
  const int hue = static_cast<int>(((colour.hue % 180) + 180) % 180);
  // Steps that act on one value after another are one table: of all steps, or of those behind HSV.
  float table[3][256];
  for (int value = 0; value < 256; ++value) {
    int level = value;
    if (colour.pre && !hsv) level = colour.pre[level];
    if (colour.post) level = colour.post[level];
    for (int c = 0; c < 3; ++c) table[c][value] = colour.normalise[256 * c + level];
  }
  std::memset(out, 0, sizeof(float) * 3 * plane);
  if (valid[0] == 0 || valid[1] == 0) return;
  Resizer resizer(picture, size, offset, valid);
  std::vector<uint8_t> line(3 * valid[1]);
  for (int64_t y = 0; y < valid[0]; ++y) {
    resizer.row(y, line.data());
    if (hsv) {
      if (colour.pre) {
        for (auto& level : line) level = colour.pre[level];
      }
      adjust_hsv(line.data(), valid[1], colour.saturation, hue);
    }
    for (int c = 0; c < 3; ++c) {
      float* to = out + c * plane + y * crop[1];
      const uint8_t* from = line.data() + c;
      if (flip) {
        for (int64_t x = 0; x < valid[1]; ++x) to[valid[1] - 1 - x] = table[c][from[3 * x]];
      } else {
        for (int64_t x = 0; x < valid[1]; ++x) to[x] = table[c][from[3 * x]];
      }
    }
  }
}

using Table = std::optional<Packed<uint8_t>>;

const uint8_t* entries(const char* name, const Table& table) {
  if (!table) return nullptr;
  check(table->ndim() == 1 && table->shape(0) == 256, "augment_image: ", name, " must be a table of 256, got ",
        table->size(), " entries");
  return table->data();
}

py::array augment_image(const Packed<uint8_t>& image, Size size, Size offset, Size crop, bool flip, const Table& pre,
                        const Table& saturation, int64_t hue, const Table& post, const Packed<float>& normalise,
                        std::optional<Packed<float>> out) {
  check(image.ndim() == 3 && image.shape(2) == 3, "augment_image: image must be [H, W, 3], got ", image.ndim(),
        " dimensions and ", image.size(), " values");
  check(normalise.ndim() == 2 && normalise.shape(0) == 3 && normalise.shape(1) == 256,
        "augment_image: normalise must be [3, 256], got ", normalise.ndim(), " dimensions and ", normalise.size(),
        " values");
  const Picture picture{image.data(), {image.shape(0), image.shape(1)}};
  check_geometry("augment_image", picture.size, size, offset, crop);
  if (!out) out = Packed<float>({int64_t{3}, crop[0], crop[1]});
  check(out->ndim() == 3 && out->shape(0) == 3 && out->shape(1) == crop[0] && out->shape(2) == crop[1],
        "augment_image: out must be [3, ", crop[0], ", ", crop[1], "], got ", out->size(), " values");
  const Colour colour{entries("pre", pre), entries("saturation", saturation), hue, entries("post", post),
                      normalise.data()};
  float* to = out->mutable_data();
  {
    py::gil_scoped_release release;
    augment(picture, size, offset, crop, flip, colour, to);
  }
  return *out;
}

const Binding binding([](py::module_& m) {
  m.def("augment_image", &augment_image, py::arg("image"), py::arg("size"), py::arg("offset"), py::arg("crop"),
        py::arg("flip"), py::arg("pre").none(true), py::arg("saturation").none(true), py::arg("hue"),
        py::arg("post").none(true), py::arg("normalise"), py::arg("out").noconvert() = py::none(),
        "Resize, crop, flip, colour and normalise; see setr_fast.ops.augment_image. `out` is written in place.");
});

}  // namespace
}  // namespace setr_fast
