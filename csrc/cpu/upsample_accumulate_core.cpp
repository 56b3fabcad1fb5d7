// See the header for what is computed. Work is cut into blocks of columns and runs of rows. A block keeps, for each row
// of small logits that it needs, that row spread over its columns ("strip": [columns / 16][class][16]); an output row
// is a weighted sum of two or three strips per view. Output rows that read the same strips are made together, so that a
// strip is read once for up to four of them, with the running maximum and its class in registers.
//
// Bound by the instructions of that last step: per class and 16 pixels a multiply-add per strip, a comparison and two
// selections. Extra memory is the strips: about half a MiB per thread, whatever the picture's size.
#include "upsample_accumulate_core.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <new>

#include "upsample_accumulate_columns.h"
#include "upsample_accumulate_loops.h"
#include "upsample_accumulate_read.h"
#include "upsample_accumulate_rows.h"

namespace setr_fast {
namespace {

constexpr int64_t kStripBytes = 512 << 10;  // per thread: stays in the second-level cache
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kAhead = 4;  // classes fetched before they are read

// Aligned memory that is not filled first.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(
            ::operator new(static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T), std::align_val_t{64}))) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

class Block {
 public:
  Block(const Mosaic& mosaic, MosaicResult& result, int64_t begin, int64_t end, int64_t slots)
      : mosaic_(mosaic),
        result_(result),
        begin_(begin),
        end_(end),
        groups_((end - begin + kLanes - 1) / kLanes),
        strip_(groups_ * mosaic.classes * kLanes),
        strips_(strip_ * slots * static_cast<int64_t>(mosaic.views.size())),
        slots_(slots),
        holds_(slots * mosaic.views.size(), -1),
        plain_(slots * mosaic.views.size(), 1),
        staged_(plan()),
        best_(kMostRows * kMostColumns) {
    if (result.counts != nullptr) counts_.resize(mosaic.classes * mosaic.classes);
  }

  void run(const std::vector<Group>& groups) {
    const bool scored = result_.scores != nullptr || (mosaic_.probabilities && mosaic_.views.size() > 1);
    const Scratch<float> logits(scored ? mosaic_.classes * kProbabilityRows * kLanes : 0);
    const Scratch<float> scores(scored ? mosaic_.classes * kProbabilityRows * kLanes : 0);
    for (const Group& group : groups) {
      bool plain = true;
      const auto views = load(group, plain);
      if (scored) {
        score(group, views, logits.get(), scores.get());
      } else if (plain) {
        largest(group, views);
      } else {
        exact(group);
      }
      if (result_.scores == nullptr) write(group);
    }
  }

  void add_counts(std::mutex& mutex) {
    const std::lock_guard<std::mutex> guard(mutex);
    for (size_t i = 0; i < counts_.size(); ++i) result_.counts[i] += counts_[i];
    if (illegal_ >= 0) result_.illegal_label = illegal_;
  }

 private:
  // Works out how this block's columns read each window; returns the floats that a staged row needs.
  int64_t plan() {
    int64_t longest = 0;
    for (const LogitsView& view : mosaic_.views) {
      std::vector<WindowSpread> windows;
      std::vector<bool> written(groups_, false);
      for (int64_t window = 0; window < view.across; ++window) {
        windows.push_back(spread_of(mosaic_, view, window, begin_, end_, written));
        longest = std::max(longest, windows.back().count);
        if (windows.back().spreads.empty()) windows.pop_back();
      }
      spreads_.push_back(std::move(windows));
    }
    return longest + 2 * kLanes;
  }

  // Makes the strips that a group reads, keeping those that are there.
  std::vector<ViewStrips> load(const Group& group, bool& plain) {
    std::vector<ViewStrips> views;
    for (size_t v = 0; v < mosaic_.views.size(); ++v) {
      const auto& wanted = group.sources[v];
      ViewStrips view{{}, group.weights[v].data()};
      for (const int32_t source : wanted) {
        const auto from = holds_.begin() + static_cast<int64_t>(v) * slots_, to = from + slots_;
        auto slot = std::find(from, to, source);
        if (slot == to) {
          slot = std::find_if(
              from, to, [&](int32_t held) { return std::find(wanted.begin(), wanted.end(), held) == wanted.end(); });
          *slot = source;
          plain_[slot - holds_.begin()] = make(v, source, strip_at(slot - holds_.begin()));
        }
        plain = plain && plain_[slot - holds_.begin()];
        view.strips.push_back(strip_at(slot - holds_.begin()));
      }
      views.push_back(std::move(view));
    }
    return views;
  }

  float* strip_at(int64_t slot) const { return strips_.get() + slot * strip_; }

  // Returns whether all values are finite and small enough that sums of them are.
  bool make(size_t v, int32_t source, float* strip) {
    const LogitsView& view = mosaic_.views[v];
    const int64_t down = source / view.height, row = source % view.height;
    bool plain = true;
    std::vector<bool> covered(groups_, false);
    for (const WindowSpread& window : spreads_[v]) {
      const WindowLogits& logits = view.windows[down * view.across + window.window];
      const int64_t at = row * logits.row_stride + window.first * logits.column_stride;
      std::memset(staged_.get(), 0, static_cast<size_t>(window.count + 2 * kLanes) * sizeof(float));
      for (int64_t k = 0; k < mosaic_.classes; ++k) {
        fetch(logits, mosaic_.bfloat16, at + (k + kAhead) * logits.class_stride, window.count);
        stage(logits, mosaic_.bfloat16, at + k * logits.class_stride, window.count, staged_.get());
        mosaic_kernels().spread(staged_.get(), window, view.column_taps, mosaic_.classes, strip + k * kLanes, plain);
      }
      for (const Spread& spread : window.spreads) covered[spread.group] = true;
    }
    for (int64_t group = 0; group < groups_; ++group) {
      if (!covered[group]) std::fill_n(strip + group * mosaic_.classes * kLanes, mosaic_.classes * kLanes, 0.0f);
    }
    return plain;
  }

  void largest(const Group& group, const std::vector<ViewStrips>& views) {
    const int64_t rows = group.count > 2 ? 4 : group.count;
    std::vector<const float*> strips;
    for (const ViewStrips& view : views) strips.insert(strips.end(), view.strips.begin(), view.strips.end());
    const auto count = static_cast<int64_t>(strips.size());
    std::vector<float> weights;
    for (int64_t row = 0; row < rows; ++row) {
      for (const ViewStrips& view : views) {
        const float* from = view.weights + row * static_cast<int64_t>(view.strips.size());
        weights.insert(weights.end(), from, from + view.strips.size());
      }
    }
    mosaic_kernels().argmax(rows, strips.data(), weights.data(), count, groups_, mosaic_.classes, best_.get());
  }

  void score(const Group& group, const std::vector<ViewStrips>& views, float* logits, float* scores) {
    const int64_t row_step = mosaic_.columns, class_step = mosaic_.rows * mosaic_.columns;
    for (int64_t columns = 0; columns < groups_; ++columns) {
      mosaic_kernels().scores(views, columns, mosaic_.classes, mosaic_.probabilities, logits, scores,
                              result_.scores == nullptr ? best_.get() : nullptr);
      if (result_.scores == nullptr) continue;
      const int64_t left = begin_ + columns * kLanes;
      const auto bytes = static_cast<size_t>(std::min(kLanes, end_ - left)) * sizeof(float);
      for (int64_t k = 0; k < mosaic_.classes; ++k) {
        for (int64_t row = 0; row < group.count; ++row) {
          std::memcpy(result_.scores + k * class_step + (group.first + row) * row_step + left,
                      scores + (k * kProbabilityRows + row) * kLanes, bytes);
        }
      }
    }
  }

  // The same sums without vectors, for logits that are not finite: a NaN is the largest, and the first one wins.
  void exact(const Group& group) {
    for (int64_t row = 0; row < group.count; ++row) {
      for (int64_t column = begin_; column < end_; ++column) {
        float best = 0.0f;
        int32_t index = -1;
        for (int64_t k = 0; k < mosaic_.classes; ++k) {
          const float value = value_at(mosaic_, k, group.first + row, column);
          if (index < 0 || value > best || (std::isnan(value) && !std::isnan(best))) {
            best = value;
            index = static_cast<int32_t>(k);
          }
        }
        best_.get()[row * kMostColumns + column - begin_] = index;
      }
    }
  }

  void write(const Group& group) {
    for (int64_t row = 0; row < group.count; ++row) {
      const int32_t* from = best_.get() + row * kMostColumns;
      const int64_t at = (group.first + row) * mosaic_.columns + begin_, count = end_ - begin_;
      if (result_.classes != nullptr) {
        for (int64_t i = 0; i < count; ++i) result_.classes[at + i] = static_cast<uint8_t>(from[i]);
      }
      if (result_.wide_classes != nullptr) {
        for (int64_t i = 0; i < count; ++i) result_.wide_classes[at + i] = static_cast<int16_t>(from[i]);
      }
      if (result_.counts == nullptr) continue;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t label = result_.labels[at + i];
        if (label == result_.ignore_index) continue;
        if (label >= mosaic_.classes) {
          illegal_ = label;
        } else {
          ++counts_[label * mosaic_.classes + from[i]];
        }
      }
    }
  }

  const Mosaic& mosaic_;
  MosaicResult& result_;
  const int64_t begin_, end_, groups_, strip_;
  std::vector<std::vector<WindowSpread>> spreads_;  // per view
  Scratch<float> strips_;
  const int64_t slots_;
  std::vector<int32_t> holds_;  // source of each slot
  std::vector<char> plain_;
  Scratch<float> staged_;
  Scratch<int32_t> best_;
  std::vector<int64_t> counts_;
  int64_t illegal_ = -1;
};

}  // namespace

void merge_mosaic(const Mosaic& mosaic, MosaicResult& result) {
  if (mosaic.rows == 0 || mosaic.columns == 0) return;
  const bool scored = result.scores != nullptr || (mosaic.probabilities && mosaic.views.size() > 1);
  const int64_t most = scored ? kProbabilityRows : kMostRows;
  int64_t slots = 1;
  for (const LogitsView& view : mosaic.views) {
    for (int64_t row = 0; row < mosaic.rows; ++row) {
      slots = std::max(slots, static_cast<int64_t>(sources_of(view, row).size()));
    }
  }
  const int64_t per_column = slots * static_cast<int64_t>(mosaic.views.size() * sizeof(float)) * mosaic.classes;
  const int64_t block = std::clamp(kStripBytes / per_column / kLanes * kLanes, kLanes, kMostColumns);
  const int64_t across = (mosaic.columns + block - 1) / block;
  const int64_t wanted = std::max<int64_t>(1, torch::stable::get_num_threads()) * kTasksPerThread;
  const int64_t down = std::clamp<int64_t>((wanted + across - 1) / across, 1, (mosaic.rows + 31) / 32);
  std::mutex mutex;
  torch::stable::parallel_for(0, across * down, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t left = task % across * block, run = task / across;
      Block part(mosaic, result, left, std::min(left + block, mosaic.columns), slots);
      part.run(groups_of(mosaic, mosaic.rows * run / down, mosaic.rows * (run + 1) / down, most));
      if (result.counts != nullptr) part.add_counts(mutex);
    }
  });
}

}  // namespace setr_fast
