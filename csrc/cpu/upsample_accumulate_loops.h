// The inner loops of upsample_accumulate_core.cpp, for the instruction set that is there.
//
// A strip is one row of small logits, spread over the columns of a block: [columns / 16][class][16].
#pragma once

#include <cstdint>
#include <vector>

namespace setr_fast {

constexpr int64_t kLanes = 16;
constexpr int64_t kMostColumns = 256;    // of a block
constexpr int64_t kMostRows = 4;         // made together
constexpr int64_t kProbabilityRows = 2;  // fewer: their scores should stay in the first-level cache
constexpr float kLargest = 1e37f;        // sums of a few such values are finite

// How 16 output columns read one window's staged columns.
struct Spread {
  int64_t group;        // which 16 columns of the block
  int32_t base;         // first staged column that they read
  bool narrow;          // all of them lie within 16
  bool first;           // no other window wrote these columns before
  int32_t index[16];    // from base
  const float* weight;  // [taps][16]
};

struct WindowSpread {
  int64_t window;        // in a row of the grid
  int64_t first, count;  // staged columns
  std::vector<Spread> spreads;
  std::vector<float> weights;
};

struct ViewStrips {
  std::vector<const float*> strips;
  const float* weights;  // [kMostRows, strips]
};

// One instruction set's inner loops.
struct MosaicKernels {
  // The first largest class of each of `rows` (1, 2 or 4) rows. Shapes: weights [rows, count], out [rows, block].
  void (*argmax)(int64_t rows, const float* const* strips, const float* weights, int64_t count, int64_t groups,
                 int64_t classes, int32_t* out);
  // Mean over the views for 16 columns and two rows: scores [class][row][16] and, where wanted, the largest class.
  void (*scores)(const std::vector<ViewStrips>& views, int64_t group, int64_t classes, bool softmax, float* logits,
                 float* scores, int32_t* best);
  // One class of a strip from the columns that were staged of one window; clears `plain` at values that are not small.
  void (*spread)(const float* staged, const WindowSpread& window, int64_t taps, int64_t classes, float* strip,
                 bool& plain);
};

const MosaicKernels& mosaic_kernels();

}  // namespace setr_fast
