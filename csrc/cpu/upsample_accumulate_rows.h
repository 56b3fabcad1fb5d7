// Which output rows of a mosaic are made together: neighbours that read the same rows of small logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "upsample_accumulate_core.h"
#include "upsample_accumulate_loops.h"

namespace setr_fast {

struct Group {
  int64_t first, count;
  std::vector<std::vector<int32_t>> sources;  // per view
  std::vector<std::vector<float>> weights;    // per view [kMostRows][sources]
};

inline std::vector<int32_t> sources_of(const LogitsView& view, int64_t row) {
  std::vector<int32_t> found;
  for (int64_t tap = 0; tap < view.row_taps; ++tap) {
    if (view.row_weight[row * view.row_taps + tap] != 0.0f) found.push_back(view.row_source[row * view.row_taps + tap]);
  }
  if (found.empty()) found.push_back(view.row_source[row * view.row_taps]);
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

inline std::vector<Group> groups_of(const Mosaic& mosaic, int64_t begin, int64_t end, int64_t most) {
  std::vector<Group> groups;
  for (int64_t row = begin; row < end; ++row) {
    std::vector<std::vector<int32_t>> sources;
    for (const LogitsView& view : mosaic.views) sources.push_back(sources_of(view, row));
    bool joins = !groups.empty() && groups.back().count < most;
    for (size_t v = 0; joins && v < sources.size(); ++v) {
      const auto& there = groups.back().sources[v];
      joins = std::includes(there.begin(), there.end(), sources[v].begin(), sources[v].end());
    }
    if (joins) {
      ++groups.back().count;
    } else {
      groups.push_back({row, 1, sources, {}});
    }
  }
  for (Group& group : groups) {
    for (size_t v = 0; v < mosaic.views.size(); ++v) {
      const LogitsView& view = mosaic.views[v];
      const auto& sources = group.sources[v];
      std::vector<float> weights(kMostRows * sources.size(), 0.0f);
      for (int64_t i = 0; i < kMostRows; ++i) {
        const int64_t row = group.first + std::min(i, group.count - 1);
        for (int64_t tap = 0; tap < view.row_taps; ++tap) {
          const auto at = std::lower_bound(sources.begin(), sources.end(), view.row_source[row * view.row_taps + tap]);
          const float weight = view.row_weight[row * view.row_taps + tap];
          if (weight != 0.0f) weights[i * sources.size() + (at - sources.begin())] += weight;
        }
      }
      group.weights.push_back(weights);
    }
  }
  return groups;
}

}  // namespace setr_fast
