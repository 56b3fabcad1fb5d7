// Output rows of 16 channels of relu(conv(bilinear(x))): what forward hands to the kernel, which picks its vector
// width.
#pragma once

#include "upsample_conv.h"

namespace setr_fast::upsample_conv {

template <class T>
struct Job {
  Sizes sizes;
  const T* x;            // [B, h, w, C]
  const float* packed;   // [slice][tap row][C][taps in a row][16]
  const float* bias;     // [slices * 16]
  const Reach* rows;     // [H * kernel]
  const Reach* columns;  // [W * kernel]
  int64_t ring;          // rows of the small map that some output row needs together
  bool relu;

  int64_t ring_floats() const { return ring * sizes.kernel * sizes.W * kLanes; }
};

// Output rows [begin, end) of one slice of one picture. `lines` is its ring; rows of the small map in front of `ready`
// are in it, or needed no more.
template <class T>
struct Part {
  int64_t picture, slice, begin, end;
  float* lines;
  int64_t ready;
  T* y;  // row `begin` of the picture, all O channels a pixel
};

template <class T>
using Sweep = void (*)(const Job<T>&, Part<T>&);

// The widest form that this processor runs, for a kernel of 1 or 3 taps in a row.
template <class T>
Sweep<T> best_sweep(int64_t kernel);

}  // namespace setr_fast::upsample_conv
