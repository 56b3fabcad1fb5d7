// Confusion matrix of two index maps: one histogram per thread over its share of the pixels, then their sum.
//
// Integers only, so the result does not depend on the number of threads. Bound by memory for wide ids, by the
// increments for uint8 maps. Two increments of one bin in a row wait for each other, and neighbours mostly fall into
// one bin: even and odd pixels therefore count into tables of their own.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../checks.h"

namespace setr_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxClasses = 4096;                    // 128 MiB of counts; beyond is a mistake of the caller
constexpr int64_t kGrain = 1 << 15;                      // pixels that pay for waking a thread
constexpr int64_t kHistogramBytes = int64_t{256} << 20;  // all threads together

struct Illegal {
  const char* what = nullptr;
  int64_t id = 0;
};

template <class P, class L>
Illegal count(const P* prediction, const L* labels, int64_t pixels, int64_t classes, int64_t ignore, int64_t* bins) {
  Illegal illegal;
  const auto limit = static_cast<uint64_t>(classes);
  const auto add = [&](int64_t i, int64_t* into) {
    const auto label = static_cast<int64_t>(labels[i]);
    const auto predicted = static_cast<int64_t>(prediction[i]);
    if (label == ignore) return;
    if (static_cast<uint64_t>(label) >= limit) {
      if (!illegal.what) illegal = {"label", label};
    } else if (static_cast<uint64_t>(predicted) >= limit) {
      if (!illegal.what) illegal = {"prediction", predicted};
    } else {
      ++into[label * classes + predicted];
    }
  };
  int64_t* odd = bins + classes * classes;
  int64_t i = 0;
  for (; i + 1 < pixels; i += 2) {
    add(i, bins);
    add(i + 1, odd);
  }
  if (i < pixels) add(i, bins);
  return illegal;
}

template <class P, class L>
void count_all(const Tensor& prediction, const Tensor& labels, int64_t classes, int64_t ignore, int64_t* out) {
  const auto* predicted = static_cast<const P*>(prediction.const_data_ptr());
  const auto* truth = static_cast<const L*>(labels.const_data_ptr());
  const int64_t pixels = labels.numel();
  const int64_t cells = classes * classes;
  const int64_t affordable =
      std::max<int64_t>(1, kHistogramBytes / (2 * cells * static_cast<int64_t>(sizeof(int64_t))));
  const int64_t wanted = std::min<int64_t>(torch::stable::get_num_threads(), (pixels + kGrain - 1) / kGrain);
  const int64_t shares = std::clamp<int64_t>(wanted, 1, affordable);
  std::vector<int64_t> bins(shares * 2 * cells);
  std::vector<Illegal> illegal(shares);
  torch::stable::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      const int64_t first = pixels * share / shares, last = pixels * (share + 1) / shares;
      illegal[share] =
          count(predicted + first, truth + first, last - first, classes, ignore, bins.data() + share * 2 * cells);
    }
  });
  for (const auto& found : illegal) {
    check(!found.what, "confusion_matrix: every ", found.what ? found.what : "", " must be 0 to ", classes - 1,
          " or the ignored label ", ignore, ", got ", found.id);
  }
  std::fill(out, out + cells, int64_t{0});
  for (int64_t table = 0; table < 2 * shares; ++table) {
    for (int64_t cell = 0; cell < cells; ++cell) out[cell] += bins[table * cells + cell];
  }
}

// Calls `then` with a value of the C++ type of an integer dtype.
template <class Then>
void with_type(const char* what, ScalarType type, const Then& then) {
  switch (type) {
    case ScalarType::Byte:
      return then(uint8_t{});
    case ScalarType::UInt16:
      return then(uint16_t{});
    case ScalarType::Short:
      return then(int16_t{});
    case ScalarType::Int:
      return then(int32_t{});
    case ScalarType::Long:
      return then(int64_t{});
    default:
      throw ShapeError(text("confusion_matrix: ", what, " must be uint8, uint16, int16, int32 or int64"));
  }
}

Tensor confusion_matrix(const Tensor prediction, const Tensor labels, int64_t num_classes, int64_t ignore_index) {
  check(num_classes >= 1 && num_classes <= kMaxClasses, "confusion_matrix: num_classes must be 1 to ", kMaxClasses,
        ", got ", num_classes);
  check(prediction.numel() == labels.numel(), "confusion_matrix: labels must have as many pixels as prediction (",
        prediction.numel(), "), got ", labels.numel());
  const Tensor packed_prediction = torch::stable::contiguous(prediction);
  const Tensor packed_labels = torch::stable::contiguous(labels);
  Tensor out = torch::stable::new_empty(labels, {num_classes, num_classes}, ScalarType::Long);
  auto* to = static_cast<int64_t*>(out.mutable_data_ptr());
  with_type("prediction", prediction.scalar_type(), [&](auto p) {
    with_type("labels", labels.scalar_type(), [&](auto l) {
      count_all<decltype(p), decltype(l)>(packed_prediction, packed_labels, num_classes, ignore_index, to);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(setr_fast_native, CPU, m) { m.impl("confusion_matrix", TORCH_BOX(&confusion_matrix)); }

}  // namespace
}  // namespace setr_fast
