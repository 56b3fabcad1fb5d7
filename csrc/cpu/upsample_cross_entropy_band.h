// One band of low-resolution rows of upsample_cross_entropy: what it reads, what it leaves, what it works in.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "../bilinear.h"

namespace setr_fast::cross_entropy {

constexpr int64_t kLanes = 16;            // floats of one vector
constexpr int64_t kPixelRows = 16;        // full-size rows that are worked through together
constexpr int32_t kNoLabel = -1;          // of an ignored pixel
constexpr int64_t kBandsPerPicture = 16;  // fixed, so that the sums do not depend on the number of threads

enum class LabelType { kUint8, kInt16, kInt32, kInt64 };

// Logits or their gradient, [B, K, h, w] with strides in elements.
struct Maps {
  void* data;
  bool bfloat16;
  int64_t strides[4];
};

struct Problem {
  int64_t batch, classes, low_height, low_width;
  int64_t height, width;  // of the labels; the resized picture may be larger at the bottom and on the right
  Axis<double> rows, columns;
  Maps logits;
  const void* labels;  // [B, H, W]
  LabelType label_type;
  int64_t ignore_index;
  const float* class_weights;    // [padded classes], zero beyond K, or none
  float smoothing, weight_sum;   // weight_sum: of all classes, K without weights
  const float* pixel_gradients;  // [B, H, W]: what each pixel's gradient is multiplied by, or none
  float scale;                   // and what all are
  bool of_labels;                // whether the label's class has a part of its own in the gradient
  float* losses;                 // [B, H, W] or none
  float* log_sums;               // [B, H, W] or none: log2 of the sum of exponentials of scores (to_scores)
  double* far_log_sums;      // [B, H, W] or none: the same of logits * log2(e), at pixels of cells that lie far apart
  bool with_gradient, adds;  // `adds`: the gradient is added to what is there
  Maps gradient;
  int exponent;  // 0: cross entropy; 1 or 2: sums over pixels of each class's probability to this power
  const float *label_slopes, *power_slopes;  // [padded]: of those sums, for their gradient; power_slopes * exponent

  bool sums_classes() const { return exponent > 0; }

  int64_t padded() const { return (classes + kLanes - 1) / kLanes * kLanes; }
  int64_t row_floats() const { return low_width * padded(); }
  int64_t bands() const { return low_height < kBandsPerPicture ? low_height : kBandsPerPicture; }
  int64_t band_begin(int64_t band) const { return low_height * band / bands(); }
};

// Floats on a 64-byte border.
class Floats {
 public:
  explicit Floats(int64_t count = 0)
      : data_(static_cast<float*>(::operator new(static_cast<size_t>(count) * sizeof(float), kAlign))) {}
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* floats) const { ::operator delete(floats, kAlign); }
  };
  std::unique_ptr<float, Free> data_;
};

// A column of pixels in float64, [K]: logits * log2(e) at the first low row, and from there to the second.
struct FarColumn {
  std::vector<double> top, step;
};

// The sources of every column, worked out once for all rows.
struct Columns {
  std::vector<int64_t> low, high;
  std::vector<float> weight;
};
Columns columns_of(const Problem& problem);

// What one thread works in.
struct Workspace {
  explicit Workspace(const Problem& problem);
  Floats scores[2];       // two low rows [w, padded]: (logit - the pixel's largest) * log2(e)
  Floats score_sums[2];   // [w]: sum over classes, weighted; for label smoothing
  int64_t score_rows[2];  // which rows these are
  bool wide[2];           // and whether they have a score below kFarApart
  Floats gradients[2];    // two low rows [w, padded]
  Floats powers;          // [kPixelRows, padded]
  Floats top, step;       // [padded]: scores at a column of pixels, at the first row and from there to the second
  FarColumn far;
  std::vector<int32_t> labels;  // [kPixelRows, W]
};

struct BandResult {
  double loss = 0;
  int64_t correct = 0;
  std::vector<double> sums;  // [2, padded]: probabilities where the label is the class, and powers everywhere
};

// Scores of float32 serve where they are small. Between low pixels of which one's leader lies far below another's
// leader, scores of both are mixed to about the same large number, and few digits are left for their difference: such a
// cell is "far", and its pixels are mixed from the logits in float64.
constexpr float kFarApart = -128.0f;  // powers of two: up to here scores err by less than 1e-5
bool is_far(const Problem& problem, const float* low_scores, const float* high_scores, int64_t left, int64_t right);
void mix_far(const Problem& problem, int64_t picture, int64_t low, int64_t high, int64_t x, FarColumn& to);
// Sets scores [padded] of the pixel in line `y` relative to the largest, which is returned.
double scores_of_far(const Problem& problem, const FarColumn& far, int64_t y, float* scores);
// One class's score there, which scores_of_far would take the largest off.
double far_score(const Problem& problem, int64_t picture, int64_t k, int64_t y, int64_t x);

// Reads one low row of logits as floats [w, padded]; the padding is left as it is.
void read_row(const Problem& problem, int64_t picture, int64_t row, float* logits);

// Labels [count] from pixel `first` on as int32, ignored ones as kNoLabel. Returns the first that is no class.
struct LabelCount {
  int64_t counted = 0;
  double weight = 0;
  bool has_illegal = false;
  int64_t illegal = 0;
};
LabelCount read_labels(const Problem& problem, int64_t first, int64_t count, int32_t* to);

// Works through low rows [begin, end) of a picture. Gradients of rows inside are written; the first row's (unless it is
// the picture's first) and those for row `end` go to `first` and `beyond` [w, padded], since the bands next to this one
// add to them.
BandResult work_band(const Problem& problem, const Columns& columns, Workspace& space, int64_t picture, int64_t begin,
                     int64_t end, float* first, float* beyond);

// Writes one row of gradients [w, padded] in the type and layout of the logits.
void write_row(const Problem& problem, int64_t picture, int64_t row, const float* gradients);

}  // namespace setr_fast::cross_entropy
