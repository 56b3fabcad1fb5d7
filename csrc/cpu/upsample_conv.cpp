// relu(conv(bilinear(x))) without the upsampled map: products at the small size, interpolation of the products.
//
// Work is split over (picture, strip of output rows, 16 output channels); upsample_conv_sweep.cpp does such a task.
// Figures: docs/design/0005-upsample-conv.md.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "upsample_conv_sweep.h"

namespace setr_fast {
namespace upsample_conv {

constexpr int64_t kLeastRows = 16;  // of the small map in a strip: two or three of them are computed twice
constexpr int64_t kMostStrips = 16;
constexpr int64_t kStripPixels = 2048;  // of the output, classified together: 2 MB at 256 channels

// [O, C, k, k] -> [slice][tap row][C][taps in a row][16], zeros for channels past the last.
template <class T>
void pack(const T* weight, const Sizes& s, float* packed) {
  const int64_t slab = s.taps() * s.channels * kLanes;
  torch::stable::parallel_for(0, s.slices(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      float* to = packed + slice * slab;
      const int64_t count = std::min(kLanes, s.outputs - slice * kLanes);
      if (count < kLanes) std::fill(to, to + slab, 0.0f);
      for (int64_t lane = 0; lane < count; ++lane) {
        const T* from = weight + (slice * kLanes + lane) * s.channels * s.taps();
        for (int64_t c = 0; c < s.channels; ++c) {
          for (int64_t t = 0; t < s.taps(); ++t) {
            const int64_t place = (t / s.kernel * s.channels + c) * s.kernel + t % s.kernel;
            to[place * kLanes + lane] = widen(from[c * s.taps() + t]);
          }
        }
      }
    }
  });
}

// Strips that give every thread nearly the same to do, and never more than a few rows twice.
int64_t strips_for(const Sizes& s) {
  const int64_t threads = torch::stable::get_num_threads(), whole = std::max<int64_t>(1, s.batch * s.slices());
  int64_t best = 1;
  double least = 1e30;
  for (int64_t strips = 1; strips <= std::clamp<int64_t>(s.h / kLeastRows, 1, kMostStrips); ++strips) {
    const int64_t rounds = (whole * strips + threads - 1) / threads;
    const double cost = static_cast<double>(rounds) * (static_cast<double>(s.h) / strips + (strips > 1 ? 2 : 0));
    if (cost < least * 0.97) {
      least = cost;
      best = strips;
    }
  }
  return best;
}

// What a call holds besides its tensors.
template <class T>
struct Call {
  std::unique_ptr<float[], void (*)(void*)> packed, shifts;
  std::vector<Reach> rows, columns;
  Job<T> job;

  Call(const Sizes& s, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool relu)
      : packed(scratch(s.slices() * kLanes * s.channels * s.taps())),
        shifts(scratch(s.slices() * kLanes)),
        rows(reaches(s.h, s.H, s.kernel, s.align_corners)),
        columns(reaches(s.w, s.W, s.kernel, s.align_corners)) {
    pack(static_cast<const T*>(weight.const_data_ptr()), s, packed.get());
    std::fill(shifts.get(), shifts.get() + s.slices() * kLanes, 0.0f);
    if (bias) {
      const T* from = static_cast<const T*>(bias->const_data_ptr());
      for (int64_t o = 0; o < s.outputs; ++o) shifts[o] = widen(from[o]);
    }
    int64_t ring = 1;
    for (int64_t Y = 0; Y < s.H; ++Y) {
      ring = std::max(ring, rows[(Y + 1) * s.kernel - 1].high - rows[Y * s.kernel].low + 1);
    }
    job = {
        s,   static_cast<const T*>(x.const_data_ptr()), packed.get(), shifts.get(), rows.data(), columns.data(), ring,
        relu};
  }
};

template <class T>
void run(const Sizes& s, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool relu,
         Tensor& out) {
  const Call<T> call(s, x, weight, bias, relu);
  const Sweep<T> sweep_part = best_sweep<T>(s.kernel);
  const int64_t strips = strips_for(s);
  T* y = static_cast<T*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, s.batch * strips * s.slices(), 1, [&](int64_t begin, int64_t end) {
    const auto lines = scratch(call.job.ring_floats());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t strip = task / s.slices() % strips, picture = task / s.slices() / strips;
      const int64_t first = s.H * strip / strips, last = s.H * (strip + 1) / strips;
      T* rows = y + (picture * s.H + first) * s.W * s.outputs;
      Part<T> part{picture, task % s.slices(), first, last, lines.get(), 0, rows};
      sweep_part(call.job, part);
    }
  });
}

// The same with ReLU, and a 1x1 convolution behind it: a few output rows at a time, so that they never leave the cache.
template <class T>
void run_classify(const Sizes& s, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  const Tensor& classes, const std::optional<Tensor>& class_bias, Tensor& out) {
  const Call<T> call(s, x, weight, bias, true);
  const Sweep<T> sweep_part = best_sweep<T>(s.kernel);
  const int64_t height = std::clamp<int64_t>(kStripPixels / s.W, 1, s.H);
  const auto lines = scratch(call.job.ring_floats() * s.slices());
  Tensor strip = torch::stable::empty({height * s.W, s.outputs}, x.scalar_type());
  T* y = static_cast<T*>(strip.mutable_data_ptr());
  Tensor logits = pixel_rows(out);
  const Tensor matrix = torch::stable::transpose(torch::stable::view(classes, {classes.size(0), s.outputs}), 0, 1);
  std::vector<int64_t> ready(s.slices());
  for (int64_t picture = 0; picture < s.batch; ++picture) {
    std::fill(ready.begin(), ready.end(), 0);
    for (int64_t first = 0; first < s.H; first += height) {
      const int64_t last = std::min(s.H, first + height);
      torch::stable::parallel_for(0, s.slices(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t slice = begin; slice < end; ++slice) {
          Part<T> part{picture, slice, first, last, lines.get() + slice * call.job.ring_floats(), ready[slice], y};
          sweep_part(call.job, part);
          ready[slice] = part.ready;
        }
      });
      const int64_t pixels = (last - first) * s.W;
      Tensor to = torch::stable::narrow(logits, 0, (picture * s.H + first) * s.W, pixels);
      const Tensor from = torch::stable::narrow(strip, 0, 0, pixels);
      if (class_bias) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(to.get(), class_bias->get(), from.get(), matrix.get(), 1, 1));
      } else {
        TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(to.get(), from.get(), matrix.get()));
      }
    }
  }
}

Sizes checked_sizes(const char* where, const Tensor& x, const Tensor& weight, int64_t H, int64_t W,
                    bool align_corners) {
  check(x.dim() == 4 && weight.dim() == 4, where, ": x and weight must have four dimensions, got ", x.dim(), " and ",
        weight.dim());
  const Sizes s{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), weight.size(2), H, W, align_corners};
  check(weight.size(1) == s.channels && weight.size(3) == s.kernel && (s.kernel == 1 || s.kernel == 3), where,
        ": weight must be [O, ", s.channels, ", k, k] with k 1 or 3, got [", weight.size(0), ", ", weight.size(1), ", ",
        weight.size(2), ", ", weight.size(3), "]");
  check(s.h >= 1 && s.w >= 1 && H >= 1 && W >= 1, where, ": sizes must be positive, got ", pair_text(s.h, s.w), " to ",
        pair_text(H, W));
  check(weight.scalar_type() == x.scalar_type(), where, ": weight must have the dtype of x");
  return s;
}

}  // namespace upsample_conv

namespace {

using torch::stable::Tensor;

Tensor upsample_conv_forward(const Tensor x, const Tensor weight, const std::optional<Tensor> bias, int64_t height,
                             int64_t width, bool align_corners, bool relu) {
  namespace uc = upsample_conv;
  const auto s = uc::checked_sizes("upsample_conv", x, weight, height, width, align_corners);
  check(!bias || (bias->numel() == s.outputs && bias->scalar_type() == x.scalar_type()),
        "upsample_conv: bias must be [", s.outputs, "] of the dtype of x");
  Tensor y = torch::stable::empty({s.batch, s.outputs, height, width}, x.scalar_type(), std::nullopt, std::nullopt,
                                  std::nullopt, uc::MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return y;
  const Tensor laid = torch::stable::contiguous(x, uc::MemoryFormat::ChannelsLast);
  const Tensor packed = torch::stable::contiguous(weight);
  std::optional<Tensor> shifts;
  if (bias) shifts = torch::stable::contiguous(*bias);
  uc::with_storage(x, "upsample_conv", [&](auto t) { uc::run<decltype(t)>(s, laid, packed, shifts, relu, y); });
  return y;
}

Tensor upsample_conv_classify(const Tensor x, const Tensor weight, const std::optional<Tensor> bias,
                              const Tensor classes, const std::optional<Tensor> class_bias, int64_t height,
                              int64_t width, bool align_corners) {
  namespace uc = upsample_conv;
  const char* where = "upsample_conv_classify";
  const auto s = uc::checked_sizes(where, x, weight, height, width, align_corners);
  check(!bias || (bias->numel() == s.outputs && bias->scalar_type() == x.scalar_type()), where, ": bias must be [",
        s.outputs, "] of the dtype of x");
  check(
      classes.dim() == 4 && classes.numel() == classes.size(0) * s.outputs && classes.scalar_type() == x.scalar_type(),
      where, ": classes must be [K, ", s.outputs, ", 1, 1] of the dtype of x");
  check(!class_bias || (class_bias->numel() == classes.size(0) && class_bias->scalar_type() == x.scalar_type()), where,
        ": class_bias must be [", classes.size(0), "] of the dtype of x");
  Tensor logits = torch::stable::empty({s.batch, classes.size(0), height, width}, x.scalar_type(), std::nullopt,
                                       std::nullopt, std::nullopt, uc::MemoryFormat::ChannelsLast);
  if (logits.numel() == 0) return logits;
  const Tensor laid = torch::stable::contiguous(x, uc::MemoryFormat::ChannelsLast);
  const Tensor packed = torch::stable::contiguous(weight), matrix = torch::stable::contiguous(classes);
  std::optional<Tensor> shifts;
  if (bias) shifts = torch::stable::contiguous(*bias);
  uc::with_storage(x, where,
                   [&](auto t) { uc::run_classify<decltype(t)>(s, laid, packed, shifts, matrix, class_bias, logits); });
  return logits;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) {
  m.impl("upsample_conv", TORCH_BOX(&upsample_conv_forward));
  m.impl("upsample_conv_classify", TORCH_BOX(&upsample_conv_classify));
}

}  // namespace
}  // namespace setr_fast
