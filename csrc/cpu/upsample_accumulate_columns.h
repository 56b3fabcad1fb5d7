// Which columns of a window's small logits the output columns of a block read, 16 at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "upsample_accumulate_core.h"
#include "upsample_accumulate_loops.h"

namespace setr_fast {

// How output columns [begin, end) read one window; `written` says which 16 columns another window wrote before.
inline WindowSpread spread_of(const Mosaic& mosaic, const LogitsView& view, int64_t window, int64_t begin, int64_t end,
                              std::vector<bool>& written) {
  const int64_t groups = (end - begin + kLanes - 1) / kLanes;
  const int32_t* start = view.column_start + window * mosaic.columns;
  const float* weight = view.column_weight + window * view.column_taps * mosaic.columns;
  const auto reads = [&](int64_t column) {
    for (int64_t tap = 0; tap < view.column_taps; ++tap) {
      if (weight[tap * mosaic.columns + column] != 0.0f) return true;
    }
    return false;
  };
  WindowSpread found{window, view.width, 0, {}, {}};
  int64_t last = -1;
  std::vector<int64_t> touched;
  for (int64_t group = 0; group < groups; ++group) {
    bool any = false;
    for (int64_t column = begin + group * kLanes; column < std::min(end, begin + (group + 1) * kLanes); ++column) {
      if (!reads(column)) continue;
      any = true;
      found.first = std::min<int64_t>(found.first, start[column]);
      last = std::max<int64_t>(last, std::min<int64_t>(view.width, start[column] + view.column_taps) - 1);
    }
    if (any) touched.push_back(group);
  }
  if (touched.empty()) return found;
  found.count = last - found.first + 1;
  found.weights.assign(touched.size() * view.column_taps * kLanes + kLanes, 0.0f);
  auto address = reinterpret_cast<uintptr_t>(found.weights.data());
  float* weights = found.weights.data() + (64 - address % 64) % 64 / sizeof(float);
  for (const int64_t group : touched) {
    Spread spread{group, std::numeric_limits<int32_t>::max(), true, !written[group], {}, weights};
    written[group] = true;
    int32_t most = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t column = begin + group * kLanes + lane;
      spread.index[lane] = -1;
      if (column >= end || !reads(column)) continue;
      spread.index[lane] = start[column] - static_cast<int32_t>(found.first);
      spread.base = std::min(spread.base, spread.index[lane]);
      most = std::max(most, spread.index[lane]);
      for (int64_t tap = 0; tap < view.column_taps; ++tap) {
        weights[tap * kLanes + lane] = weight[tap * mosaic.columns + column];
      }
    }
    spread.narrow = most - spread.base + view.column_taps <= kLanes;
    for (int32_t& index : spread.index) index = index < 0 ? 0 : index - spread.base;
    found.spreads.push_back(spread);
    weights += view.column_taps * kLanes;
  }
  return found;
}

}  // namespace setr_fast
