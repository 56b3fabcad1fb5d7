// Registers upsample_conv and its backward for CUDA: products by the library at low resolution, the rest by our
// kernels. UNMEASURED, see the .cu.
//
// Forward a few pictures at a time, so that their tap maps are still in L2 when they are combined.
#include "upsample_conv.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../checks.h"
#include "stream.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTapMapBytes = int64_t{40} << 20;  // what L2 of an H200 (50 MB) holds beside the output

MapType map_type(const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float) return MapType::kFloat;
  if (x.scalar_type() == ScalarType::BFloat16) return MapType::kBFloat16;
  check(x.scalar_type() == ScalarType::Half, "upsample_conv: x must be float32, bfloat16 or float16");
  return MapType::kHalf;
}

// [B, C, H, W] as its pixels lie in channels-last memory, [B, H, W, C]; copied where it is laid out otherwise.
Tensor by_pixel(const Tensor& x) {
  return torch::stable::contiguous(torch::stable::transpose(torch::stable::transpose(x, 1, 2), 2, 3));
}

// And back: a view.
Tensor by_channel(const Tensor& x) { return torch::stable::transpose(torch::stable::transpose(x, 2, 3), 1, 2); }

// [O, C, k, k] -> [k * k * padded, C]: one row per tap and output channel, zero rows up to `padded` channels.
Tensor tap_weights(const Tensor& weight, int64_t padded) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1), taps = weight.size(2) * weight.size(3);
  const Tensor flat = torch::stable::reshape(weight, {outputs, inputs, taps});
  Tensor by_tap = torch::stable::transpose(torch::stable::transpose(flat, 0, 2), 1, 2);  // [taps, O, C]
  if (padded > outputs) by_tap = torch::stable::pad(by_tap, {0, 0, 0, padded - outputs});
  return torch::stable::reshape(by_tap, {taps * padded, inputs});
}

struct Problem {
  int side;
  TapShape shape;

  Problem(const Tensor& x, const Tensor& weight, int64_t height, int64_t width, bool align_corners) {
    check(x.dim() == 4 && weight.dim() == 4 && x.size(1) == weight.size(1) && weight.size(2) == weight.size(3),
          "upsample_conv: x must be [B, C, h, w] and weight [O, C, k, k]");
    side = static_cast<int>(weight.size(2));
    check(side == 1 || side == 3, "upsample_conv: the kernel must be 1 or 3 pixels, got ", side);
    check(x.size(2) >= 1 && x.size(3) >= 1 && height >= 1 && width >= 1,
          "upsample_conv: sizes must be at least 1, got ", pair_text(x.size(2), x.size(3)), " to ",
          pair_text(height, width));
    check(x.scalar_type() == weight.scalar_type() && x.get_device() == weight.get_device(),
          "upsample_conv: weight must have the dtype and device of x");
    shape.pictures = x.size(0);
    shape.rows = make_axis<float>(x.size(2), height, align_corners);
    shape.cols = make_axis<float>(x.size(3), width, align_corners);
    shape.channels = weight.size(0);
    shape.padded = (shape.channels + kLanes - 1) / kLanes * kLanes;
    check(addressable(shape, side), "upsample_conv: a line of tap maps must hold fewer than 2^31 values");
  }

  int64_t pixels() const { return shape.rows.in * shape.cols.in; }  // of one picture, at low resolution
  int64_t values() const { return side * side * shape.padded; }     // of one such pixel
};

// Calls combine(part, z, bias, y) for a few pictures at a time; y is where the first of them starts.
template <class Combine>
Tensor convolved(const Problem& problem, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                 const Combine& combine) {
  const TapShape& shape = problem.shape;
  const Tensor rows = torch::stable::reshape(by_pixel(x), {x.size(0) * problem.pixels(), x.size(1)});
  const Tensor factor = torch::stable::transpose(tap_weights(weight, shape.padded), 0, 1);
  std::optional<Tensor> packed_bias;
  if (bias.has_value()) {
    check(bias->scalar_type() == x.scalar_type() && bias->numel() == weight.size(0) &&
              bias->get_device() == x.get_device(),
          "upsample_conv: bias must hold a value per output channel, of the dtype and device of x");
    packed_bias = torch::stable::contiguous(*bias);
  }
  Tensor y = torch::stable::new_empty(x, {x.size(0), shape.rows.out, shape.cols.out, shape.channels});
  const int64_t size = static_cast<int64_t>(x.element_size());
  const int64_t at_once = std::max<int64_t>(1, kTapMapBytes / (problem.pixels() * problem.values() * size));
  for (int64_t first = 0; first < x.size(0); first += at_once) {
    Problem part = problem;
    part.shape.pictures = std::min(at_once, x.size(0) - first);
    Tensor some = rows;
    const Tensor z = torch::stable::matmul(
        torch::stable::narrow(some, 0, first * problem.pixels(), part.shape.pictures * problem.pixels()), factor);
    const int64_t before = first * shape.rows.out * shape.cols.out * shape.channels * size;
    cuda_check("upsample_conv",
               combine(part, z.const_data_ptr(), packed_bias.has_value() ? packed_bias->const_data_ptr() : nullptr,
                       static_cast<char*>(y.mutable_data_ptr()) + before));
  }
  return by_channel(y);
}

Tensor upsample_conv(const Tensor x, const Tensor weight, std::optional<Tensor> bias, int64_t height, int64_t width,
                     bool align_corners, bool relu) {
  const Problem problem(x, weight, height, width, align_corners);
  const MapType type = map_type(x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const cudaStream_t stream = current_stream(x.get_device());
  return convolved(problem, x, weight, bias, [&](const Problem& part, const void* z, const void* of_bias, void* y) {
    return launch_upsample_combine(type, part.side, part.shape, z, of_bias, relu, y, stream);
  });
}

std::tuple<Tensor, Tensor, Tensor> upsample_conv_statistics(const Tensor x, const Tensor weight,
                                                            std::optional<Tensor> bias, int64_t height, int64_t width,
                                                            bool align_corners) {
  const Problem problem(x, weight, height, width, align_corners);
  const MapType type = map_type(x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const cudaStream_t stream = current_stream(x.get_device());
  // Parts have no more blocks in all than one each beyond those of the whole.
  const int64_t most = statistics_blocks(problem.shape) + x.size(0), groups = problem.shape.padded / kLanes;
  const Tensor partials = torch::stable::new_zeros(x, {most, groups, kPartial}, ScalarType::Float);
  auto* to = static_cast<float*>(partials.mutable_data_ptr());
  int64_t blocks = 0;
  const Tensor y =
      convolved(problem, x, weight, bias, [&](const Problem& part, const void* z, const void* of_bias, void* of_y) {
        float* of_part = to + blocks * groups * kPartial;
        blocks += statistics_blocks(part.shape);
        return launch_upsample_combine_statistics(type, part.side, part.shape, z, of_bias, of_y, of_part, stream);
      });
  Tensor mean = torch::stable::new_empty(x, {problem.shape.channels}, ScalarType::Float);
  Tensor spread = torch::stable::new_empty(x, {problem.shape.channels}, ScalarType::Float);
  cuda_check("upsample_conv_statistics",
             launch_upsample_statistics_merge(to, blocks, problem.shape.channels, groups,
                                              static_cast<float*>(mean.mutable_data_ptr()),
                                              static_cast<float*>(spread.mutable_data_ptr()), stream));
  return {y, mean, spread};
}

std::tuple<Tensor, Tensor, Tensor> upsample_conv_backward(const Tensor grad, const Tensor x, const Tensor weight,
                                                          bool align_corners) {
  check(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == weight.size(0) &&
            grad.scalar_type() == x.scalar_type(),
        "upsample_conv_backward: grad must be [B, O, H, W] of the dtype of x");
  const Problem problem(x, weight, grad.size(2), grad.size(3), align_corners);
  const MapType type = map_type(x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const TapShape& shape = problem.shape;
  const int64_t inputs = x.size(1), outputs = shape.channels, side = problem.side;
  const Tensor pixels = by_pixel(grad);
  Tensor z = torch::stable::new_empty(x, {x.size(0) * problem.pixels(), problem.values()});
  cuda_check("upsample_conv_backward",
             launch_upsample_combine_backward(type, problem.side, shape, pixels.const_data_ptr(), z.mutable_data_ptr(),
                                              current_stream(x.get_device())));
  const Tensor dx = torch::stable::matmul(z, tap_weights(weight, shape.padded));
  const Tensor rows = torch::stable::reshape(by_pixel(x), {x.size(0) * problem.pixels(), inputs});
  const Tensor by_tap = torch::stable::matmul(torch::stable::transpose(z, 0, 1), rows);  // [taps * padded, C]
  Tensor taps = torch::stable::reshape(by_tap, {side * side, shape.padded, inputs});
  taps = torch::stable::narrow(taps, 1, 0, outputs);
  // Copied, not `contiguous`, which leaves the strides of a single tap as they are.
  Tensor dweight = torch::stable::new_empty(weight, {outputs, inputs, side * side});
  torch::stable::copy_(dweight, torch::stable::transpose(torch::stable::transpose(taps, 1, 2), 0, 2));
  const Tensor dbias =
      torch::stable::sum(torch::stable::reshape(pixels, {grad.size(0) * grad.size(2) * grad.size(3), outputs}), {{0}});
  return {by_channel(torch::stable::reshape(dx, {x.size(0), shape.rows.in, shape.cols.in, inputs})),
          torch::stable::reshape(dweight, {outputs, inputs, side, side}), dbias};
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CUDA, m) {
  m.impl("upsample_conv", TORCH_BOX(&upsample_conv));
  m.impl("upsample_conv_statistics", TORCH_BOX(&upsample_conv_statistics));
  m.impl("upsample_conv_backward", TORCH_BOX(&upsample_conv_backward));
}

}  // namespace
}  // namespace setr_fast
