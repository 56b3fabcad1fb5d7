// Runs what a thread of a CUDA kernel does, thread after thread, for the tests: every access is held to its bounds,
// every value must be written exactly once.
#include <algorithm>

#include "../bindings.h"
#include "../checks.h"
#include "../patch_arguments.h"
#include "../patch_rows.h"
#include "../upsample_combine.h"

namespace setr_fast {
namespace {

namespace py = pybind11;

// A buffer as a kernel sees it.
template <class T>
class Guarded {
 public:
  Guarded(const char* name, T* values, int64_t size) : name_(name), values_(values), size_(size) {}

  T read(int64_t at) const {
    check(at >= 0 && at < size_, name_, ": a thread reads value ", at, " of ", size_);
    return values_[at];
  }
  void write(int64_t at, T value) const {
    check(at >= 0 && at < size_, name_, ": a thread writes value ", at, " of ", size_);
    check(!written_[at], name_, ": value ", at, " is written twice");
    written_[at] = true;
    values_[at] = value;
  }
  void check_complete() const {
    const auto missing = std::find(written_.begin(), written_.end(), false);
    check(missing == written_.end(), name_, ": value ", missing - written_.begin(), " is never written");
  }

 private:
  const char* name_;
  T* values_;
  int64_t size_;
  mutable std::vector<bool> written_ = std::vector<bool>(size_);
};

struct PatchMemory {
  Guarded<const uint8_t> image;
  Guarded<float> rows;

  void load(int64_t from, int count, uint8_t (&bytes)[kPiece]) const {
    for (int i = 0; i < kPiece; ++i) bytes[i] = i < count ? image.read(from + i) : uint8_t{0};
  }
  void store(int64_t to, int count, const float (&values)[kPiece]) const {
    for (int i = 0; i < count; ++i) rows.write(to + i, values[i]);
  }
  void put(int64_t to, float value) const { rows.write(to, value); }
};

py::array_t<float> patch_embed_rows_threads(const Packed<uint8_t>& image, int64_t patch, int64_t h, int64_t w,
                                            const std::vector<double>& shift, const std::vector<double>& scale,
                                            const std::vector<double>& fill, bool planar) {
  check_patches(image.ndim() == 4 ? image.shape(3) : 0, patch, h, w);
  const PatchGrid grid{image.shape(0), image.shape(1), image.shape(2), image.strides(0), image.strides(1), patch, h, w};
  py::array_t<float> rows({grid.pictures * h * w, patch * patch * kPatchChannels});
  const PatchMemory memory{{"image", image.data(), image.size()}, {"rows", rows.mutable_data(), rows.size()}};
  const ByteScaling scaling = byte_scaling(shift, scale, fill);
  const int64_t threads = patch_lines(grid) * pieces_of_line(grid);
  for (int64_t index = 0; index < threads; ++index) patch_piece(grid, scaling, planar, index, memory);
  memory.rows.check_complete();
  return rows;
}

struct CombineMemory {
  Guarded<const float> z, bias;
  Guarded<float> y;
  int64_t channels;
  bool relu;

  Lanes load_z(int64_t offset) const {
    Lanes lanes;
    for (int i = 0; i < kLanes; ++i) lanes.of[i] = z.read(offset + i);
    return lanes;
  }
  Lanes start(int64_t channel) const {
    Lanes lanes{};
    for (int i = 0; i < kLanes && channel + i < channels; ++i) lanes.of[i] = bias.read(channel + i);
    return lanes;
  }
  void finish(int64_t pixel, int64_t channel, const Lanes& lanes) const {
    for (int i = 0; i < kLanes && channel + i < channels; ++i) {
      y.write(pixel + channel + i, relu ? std::max(lanes.of[i], 0.0f) : lanes.of[i]);
    }
  }
};

struct CombineBackwardMemory {
  Guarded<const float> grad;
  Guarded<float> z;
  int64_t channels;

  Lanes load_y(int64_t pixel, int64_t channel) const {
    Lanes lanes{};
    for (int i = 0; i < kLanes && channel + i < channels; ++i) lanes.of[i] = grad.read(pixel + channel + i);
    return lanes;
  }
  void store_z(int64_t offset, const Lanes& lanes) const {
    for (int i = 0; i < kLanes; ++i) z.write(offset + i, lanes.of[i]);
  }
};

// z [B, h, w, side * side, padded] and bias [channels] -> y [B, height, width, channels].
py::array_t<float> upsample_combine_threads(const Packed<float>& z, const Packed<float>& bias, int64_t height,
                                            int64_t width, bool align_corners, bool relu) {
  check(z.ndim() == 5 && bias.ndim() == 1, "upsample_combine_threads: z must be [B, h, w, taps, padded], bias [O]");
  const TapShape shape{z.shape(0), make_axis<float>(z.shape(1), height, align_corners),
                       make_axis<float>(z.shape(2), width, align_corners), bias.size(), z.shape(4)};
  py::array_t<float> y({shape.pictures, height, width, shape.channels});
  const CombineMemory memory{{"z", z.data(), z.size()},
                             {"bias", bias.data(), bias.size()},
                             {"y", y.mutable_data(), y.size()},
                             shape.channels,
                             relu};
  for (int64_t index = 0; index < combine_threads(shape); ++index) {
    z.shape(3) == 9 ? combine_strip<3>(shape, memory, index) : combine_strip<1>(shape, memory, index);
  }
  memory.y.check_complete();
  return y;
}

// grad [B, height, width, channels] -> the gradient of z [B, h, w, side * side, padded].
py::array_t<float> upsample_combine_backward_threads(const Packed<float>& grad, int64_t h, int64_t w, int64_t side,
                                                     bool align_corners) {
  check(grad.ndim() == 4, "upsample_combine_backward_threads: grad must be [B, height, width, channels]");
  const int64_t padded = (grad.shape(3) + kLanes - 1) / kLanes * kLanes;
  const TapShape shape{grad.shape(0), make_axis<float>(h, grad.shape(1), align_corners),
                       make_axis<float>(w, grad.shape(2), align_corners), grad.shape(3), padded};
  py::array_t<float> z({shape.pictures, h, w, side * side, padded});
  const CombineBackwardMemory memory{
      {"grad", grad.data(), grad.size()}, {"z", z.mutable_data(), z.size()}, shape.channels};
  for (int64_t index = 0; index < combine_backward_threads(shape); ++index) {
    side == 3 ? combine_backward_pixel<3>(shape, memory, index) : combine_backward_pixel<1>(shape, memory, index);
  }
  memory.z.check_complete();
  return z;
}

const Binding binding([](py::module_& m) {
  m.def("patch_embed_rows_threads", &patch_embed_rows_threads, "The threads of the CUDA gather of patches, in turn.");
  m.def("upsample_combine_threads", &upsample_combine_threads, "The threads of upsample_conv's CUDA kernel, in turn.");
  m.def("upsample_combine_backward_threads", &upsample_combine_backward_threads,
        "The threads of the backward of upsample_conv's CUDA kernel, in turn.");
});

}  // namespace
}  // namespace setr_fast
