// Gradients of conv(bilinear(x)): the gradient of every tap's map is gathered at the small size, the rest are products.
//
// Strip by strip of the small map: dz[pixel][tap][O] is gathered from dy (first along y, then along x, both from lists
// of who contributes to whom; no atomics, a fixed order of sums), then dx = dz * W and dW += dz^T * x by the library's
// GEMM, which brings the CPU's matrix unit where there is one. A strip's dz is reused and stays in the last-level
// cache.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "upsample_conv.h"

namespace setr_fast {
namespace upsample_conv {

constexpr int64_t kStripPixels = 2048;  // of the small map: enough rows for the products, 19 MB of dz at 256 outputs
constexpr int64_t kChunk = 4 * kLanes;  // output channels gathered at a time: 3 x 64 kB of half-done rows

// For every (source pixel, tap): which output pixels it reaches, and by which share.
struct Contributions {
  struct One {
    int64_t at;
    float share;
  };
  std::vector<int64_t> begin;  // [in * kernel + 1]
  std::vector<One> list;

  Contributions(int64_t in, int64_t out, int64_t kernel, bool align_corners) : begin(in * kernel + 1, 0) {
    const auto table = reaches(in, out, kernel, align_corners);
    const auto each = [&](const auto& then) {
      for (int64_t at = 0; at < out; ++at) {
        for (int64_t tap = 0; tap < kernel; ++tap) {
          const Reach& r = table[at * kernel + tap];
          if (r.low_share != 0) then(r.low * kernel + tap, One{at, r.low_share});
          if (r.high_share != 0) then(r.high * kernel + tap, One{at, r.high_share});
        }
      }
    };
    each([&](int64_t place, const One&) { ++begin[place + 1]; });
    for (std::size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
    list.resize(begin.back());
    auto next = begin;
    each([&](int64_t place, const One& one) { list[next[place]++] = one; });
  }
};

template <class T>
struct Gather {
  Sizes sizes;
  const T* dy;  // [B, H, W, O]
  const Contributions* rows;
  const Contributions* columns;
};

inline __attribute__((always_inline)) void load_lanes(const float* from, Lanes& to) {
  to = *reinterpret_cast<const Lanes*>(from);
}
inline __attribute__((always_inline)) void load_lanes(const uint16_t* from, Lanes& to) {
  const Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16;
  to = reinterpret_cast<const Lanes&>(bits);
}

// sum of share * source[at * stride] over a list, for `count` channels.
template <class T, class D>
inline __attribute__((always_inline)) void gather_one(const Contributions::One* from, const Contributions::One* end,
                                                      const T* source, int64_t stride, int64_t count, D* to) {
  if (count == kChunk) {
    Lanes sum[4]{};
    for (; from != end; ++from) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        Lanes value;
        load_lanes(source + from->at * stride + v * kLanes, value);
        sum[v] += from->share * value;
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) store_lanes(sum[v], to + v * kLanes);
    return;
  }
  for (int64_t o = 0; o < count; ++o) {
    float sum = 0;
    for (auto one = from; one != end; ++one) sum += one->share * widen(source[one->at * stride + o]);
    narrow(sum, to + o);
  }
}

// dz of one row of the small map: dz[w][taps][O].
template <class T, class D>
inline __attribute__((always_inline)) void gather_row(const Gather<T>& job, int64_t picture, int64_t row, float* half,
                                                      D* dz) {
  const Sizes& s = job.sizes;
  const T* dy = job.dy + picture * s.H * s.W * s.outputs;
  for (int64_t first = 0; first < s.outputs; first += kChunk) {
    const int64_t count = std::min(kChunk, s.outputs - first);
    for (int64_t t = 0; t < s.kernel; ++t) {
      const auto* from = job.rows->list.data() + job.rows->begin[row * s.kernel + t];
      const auto* end = job.rows->list.data() + job.rows->begin[row * s.kernel + t + 1];
      for (int64_t X = 0; X < s.W; ++X) {
        gather_one(from, end, dy + X * s.outputs + first, s.W * s.outputs, count, half + X * kChunk);
      }
      for (int64_t j = 0; j < s.w; ++j) {
        for (int64_t u = 0; u < s.kernel; ++u) {
          const auto* begin = job.columns->begin.data() + j * s.kernel + u;
          gather_one(job.columns->list.data() + begin[0], job.columns->list.data() + begin[1], half, kChunk, count,
                     dz + (j * s.taps() + t * s.kernel + u) * s.outputs + first);
        }
      }
    }
  }
}

template <class T, class D>
inline __attribute__((always_inline)) void gather_rows(const Gather<T>& job, int64_t begin, int64_t end, D* dz) {
  const Sizes& s = job.sizes;
  const auto half = scratch(s.W * kChunk);
  for (int64_t row = begin; row < end; ++row) {
    gather_row(job, row / s.h, row % s.h, half.get(), dz + (row - begin) * s.w * s.taps() * s.outputs);
  }
}

template <class T, class D>
void gather_baseline(const Gather<T>& job, int64_t begin, int64_t end, D* dz) {
  gather_rows(job, begin, end, dz);
}
#if SETR_FAST_TARGETS
template <class T, class D>
SETR_FAST_AVX512 void gather_avx512(const Gather<T>& job, int64_t begin, int64_t end, D* dz) {
  gather_rows(job, begin, end, dz);
}
template <class T, class D>
SETR_FAST_AVX2 void gather_avx2(const Gather<T>& job, int64_t begin, int64_t end, D* dz) {
  gather_rows(job, begin, end, dz);
}
#endif

template <class T, class D>
auto best_gather() {
#if SETR_FAST_TARGETS
  if (width() == 512) return &gather_avx512<T, D>;
  if (width() == 256) return &gather_avx2<T, D>;
#endif
  return &gather_baseline<T, D>;
}

Tensor empty(std::initializer_list<int64_t> size, ScalarType type) {
  return torch::stable::empty(std::vector<int64_t>(size), type);
}

void multiply(Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

void multiply_add(Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1, 1));
}

// [O, C, k, k] <-> [taps * O, C]
template <class T, class D>
void unfold_weight(const T* weight, const Sizes& s, D* to) {
  torch::stable::parallel_for(0, s.outputs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t t = 0; t < s.taps(); ++t) {
        for (int64_t c = 0; c < s.channels; ++c) {
          narrow(widen(weight[(o * s.channels + c) * s.taps() + t]), to + (t * s.outputs + o) * s.channels + c);
        }
      }
    }
  });
}

template <class T>
void fold_weight(const float* from, const Sizes& s, T* weight) {
  torch::stable::parallel_for(0, s.outputs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t t = 0; t < s.taps(); ++t) {
          narrow(from[(t * s.outputs + o) * s.channels + c], weight + (o * s.channels + c) * s.taps() + t);
        }
      }
    }
  });
}

struct Gradients {
  Tensor x, weight, bias;
};

// T is the storage of the tensors, D that of the products' operands: float32, or bfloat16 for the matrix unit.
template <class T, class D>
void run_backward(const Sizes& s, const Tensor& dy, const Tensor& x, const Tensor& weight, Gradients& out) {
  const auto type = sizeof(D) == sizeof(float) ? ScalarType::Float : ScalarType::BFloat16;
  const bool same = sizeof(T) == sizeof(D);
  const int64_t rows = s.batch * s.h, columns = s.taps() * s.outputs;
  const int64_t strip = std::clamp<int64_t>(kStripPixels / s.w, 1, std::max<int64_t>(rows, 1));
  Tensor matrix = empty({columns, s.channels}, type), dz = empty({strip * s.w, columns}, type);
  Tensor sums = empty({columns, s.channels}, ScalarType::Float);
  torch::stable::zero_(sums);
  Tensor part = sizeof(D) == sizeof(float) ? sums : empty({columns, s.channels}, type);
  Tensor wide = empty({same ? 0 : strip * s.w, s.channels}, type);
  std::vector<float> bias(s.outputs, 0.0f);
  unfold_weight(static_cast<const T*>(weight.const_data_ptr()), s, static_cast<D*>(matrix.mutable_data_ptr()));
  const Contributions to_rows(s.h, s.H, s.kernel, s.align_corners), to_columns(s.w, s.W, s.kernel, s.align_corners);
  const Gather<T> job{s, static_cast<const T*>(dy.const_data_ptr()), &to_rows, &to_columns};
  const auto gather = best_gather<T, D>();
  const Tensor pixels = pixel_rows(x);
  Tensor pixel_gradients = pixel_rows(out.x);
  auto* gathered = static_cast<D*>(dz.mutable_data_ptr());
  for (int64_t row = 0; row < rows; row += strip) {
    const int64_t count = std::min(strip, rows - row), length = count * s.w;
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      gather(job, row + begin, row + end, gathered + begin * s.w * columns);
    });
    Tensor dz_rows = torch::stable::narrow(dz, 0, 0, length);
    Tensor x_rows = torch::stable::narrow(const_cast<Tensor&>(pixels), 0, row * s.w, length);
    Tensor dx_rows = torch::stable::narrow(pixel_gradients, 0, row * s.w, length);
    if (same) {
      multiply(dx_rows, dz_rows, matrix);
    } else {
      Tensor wide_rows = torch::stable::narrow(wide, 0, 0, length);
      multiply(wide_rows, dz_rows, matrix);
      torch::stable::copy_(dx_rows, wide_rows);
      torch::stable::copy_(wide_rows, x_rows);
      x_rows = wide_rows;
    }
    const Tensor turned = torch::stable::transpose(dz_rows, 0, 1);
    if (sizeof(D) == sizeof(float)) {
      multiply_add(sums, turned, x_rows);
    } else {  // partial sums are rounded, their sum is not
      multiply(part, turned, x_rows);
      const auto* from = static_cast<const D*>(part.const_data_ptr());
      auto* to = static_cast<float*>(sums.mutable_data_ptr());
      torch::stable::parallel_for(0, columns * s.channels, 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] += widen(from[i]);
      });
    }
    // The middle tap is never cut off, and its shares sum to one: its gradients sum to those of the bias.
    for (int64_t p = 0; p < length; ++p) {
      const D* middle = gathered + p * columns + s.taps() / 2 * s.outputs;
      for (int64_t o = 0; o < s.outputs; ++o) bias[o] += widen(middle[o]);
    }
  }
  fold_weight(static_cast<const float*>(sums.const_data_ptr()), s, static_cast<T*>(out.weight.mutable_data_ptr()));
  for (int64_t o = 0; o < s.outputs; ++o) narrow(bias[o], static_cast<T*>(out.bias.mutable_data_ptr()) + o);
}

}  // namespace upsample_conv

namespace {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> upsample_conv_backward(const Tensor grad, const Tensor x, const Tensor weight,
                                                          bool align_corners) {
  namespace uc = upsample_conv;
  const char* where = "upsample_conv_backward";
  check(grad.dim() == 4, where, ": grad must have four dimensions, got ", grad.dim());
  const auto s = uc::checked_sizes(where, x, weight, grad.size(2), grad.size(3), align_corners);
  check(grad.size(0) == s.batch && grad.size(1) == s.outputs && grad.scalar_type() == x.scalar_type(), where,
        ": grad must be [", s.batch, ", ", s.outputs, ", H, W] of the dtype of x");
  uc::Gradients out{torch::stable::empty({s.batch, s.channels, s.h, s.w}, x.scalar_type(), std::nullopt, std::nullopt,
                                         std::nullopt, uc::MemoryFormat::ChannelsLast),
                    torch::stable::empty({s.outputs, s.channels, s.kernel, s.kernel}, x.scalar_type()),
                    torch::stable::empty({s.outputs}, x.scalar_type())};
  const Tensor dy = torch::stable::contiguous(grad, uc::MemoryFormat::ChannelsLast);
  const Tensor laid = torch::stable::contiguous(x, uc::MemoryFormat::ChannelsLast);
  const Tensor packed = torch::stable::contiguous(weight);
  uc::with_storage(x, where, [&](auto t) {
    using T = decltype(t);
    if (sizeof(T) < sizeof(float) && uc::has_matrix_unit()) {
      uc::run_backward<T, T>(s, dy, laid, packed, out);
    } else {
      uc::run_backward<T, float>(s, dy, laid, packed, out);
    }
  });
  return {out.x, out.weight, out.bias};
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) {
  m.impl("upsample_conv_backward", TORCH_BOX(&upsample_conv_backward));
}

}  // namespace
}  // namespace setr_fast
