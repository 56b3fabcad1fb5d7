// The part of upsample_cross_entropy_band.cpp that is compiled once per instruction set, inside a namespace of that
// set's name: vectors wider than the function's own set would be taken apart before target_clones makes its copies.
//
// Each low pixel's largest logit is subtracted before anything is mixed. Mixing then never leaves (-inf, 0], the
// exponentials cannot overflow, and large logits lose nothing: what is left is small where it matters. A pixel whose
// mixed scores are all far below zero (other classes lead at its corners) is done again from its own largest score.
// The gradient is summed in the same pass over the exponentials: rows of a column of pixels first, then its corners.

using Vector = float __attribute__((vector_size(64)));
using Half = float __attribute__((vector_size(32)));
using Quarter = float __attribute__((vector_size(16)));
using Integers = int32_t __attribute__((vector_size(64)));

// Vectors go through references: passing them by value would depend on the target.
SETR_FAST_INLINE void load(const float* from, Vector& to) { std::memcpy(&to, from, sizeof(to)); }
SETR_FAST_INLINE void store(const Vector& from, float* to) { std::memcpy(to, &from, sizeof(from)); }

// The upper half of the lanes onto the lower, until one is left. The copy keeps the caller's sum in a register.
SETR_FAST_INLINE float sum_of(const Vector& vector) {
  const Vector copy = vector;
  Half halves[2];
  std::memcpy(halves, &copy, sizeof(halves));
  const Half half = halves[0] + halves[1];
  Quarter quarters[2];
  std::memcpy(quarters, &half, sizeof(quarters));
  const Quarter quarter = quarters[0] + quarters[1];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

SETR_FAST_INLINE float largest_of(const Vector& vector) {
  const Vector copy = vector;
  Half halves[2];
  std::memcpy(halves, &copy, sizeof(halves));
  const Half half = halves[0] > halves[1] ? halves[0] : halves[1];
  Quarter quarters[2];
  std::memcpy(quarters, &half, sizeof(quarters));
  const Quarter quarter = quarters[0] > quarters[1] ? quarters[0] : quarters[1];
  return std::max(std::max(quarter[0], quarter[1]), std::max(quarter[2], quarter[3]));
}

constexpr float kPad = -1e30f;  // the score of a class that is not there

constexpr float kLog2E = 1.44269504088896340736f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr float kFarBelow = -64.0f;    // powers of two; sums of what is below lose digits to underflow
constexpr float kUnderflow = -127.0f;  // 2^-127 counts as zero

SETR_FAST_INLINE bool any_of(const Integers& mask) {
  int64_t words[8];
  std::memcpy(words, &mask, sizeof(words));
  return ((words[0] | words[1]) | (words[2] | words[3]) | (words[4] | words[5]) | (words[6] | words[7])) != 0;
}

// 2^t for t <= 0 (a little above is as good) to 2e-9 before rounding; NaN stays NaN. Coefficients: minimax fit of
// 2^f / 2^f over [-0.5, 0.5] in relative error.
SETR_FAST_INLINE void exp2_of(Vector& t) {
  const Vector floor = Vector{} + kUnderflow, magic = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds
  t = t < floor ? floor : t;
  const Vector shifted = t + magic;
  const Vector f = t - (shifted - magic);
  Vector p = f * 1.534581038e-04f + 1.339993121e-03f;
  p = p * f + 9.618488963e-03f;
  p = p * f + 5.550328777e-02f;
  p = p * f + 2.402264689e-01f;
  p = p * f + 6.931472057e-01f;
  p = p * f + 1.0f;
  const Integers power = ((Integers)shifted << 23) + 0x3F800000;  // bits; whole -127 gives those of 0
  t = p * (Vector)power;
}

// A pixel's four corners in the gradients: low and high row, low and high column.
struct Corners {
  float *low_low, *low_high, *high_low, *high_high;
};

// The pixels of one column, at most kPixelRows, that lie between the same two low rows.
struct Column {
  int64_t rows, padded;
  const float* weights;   // [rows]: share of the second low row
  const int32_t* labels;  // [rows], `stride` apart
  int64_t stride;
  float *top, *step;        // [padded]
  float top_sum, step_sum;  // of scores, for label smoothing
  float* powers;            // [rows, padded]
  int64_t first;            // which line of the picture the first one is
  const FarColumn* far;     // or none
};

// The scores of one pixel of a far column take the place of the column's; returns what was taken off them.
SETR_FAST_INLINE double settle(const Problem& p, Column& c, int64_t row) {
  const double largest = scores_of_far(p, *c.far, c.first + row, c.top);
  std::memset(c.step, 0, static_cast<size_t>(c.padded) * sizeof(float));
  c.top_sum = c.step_sum = 0.0f;
  for (int64_t k = 0; k < p.classes && p.smoothing > 0.0f; ++k)
    c.top_sum += p.class_weights ? c.top[k] * p.class_weights[k] : c.top[k];
  return largest;
}

struct Shares {
  float to_low[kPixelRows], to_high[kPixelRows];              // of the exponentials
  float label_to_low[kPixelRows], label_to_high[kPixelRows];  // of the label's class
  float even_to_low, even_to_high;                            // of all classes alike, for label smoothing
  int64_t row[kPixelRows];                                    // of those that are not ignored
  int64_t count;
};

// Loss of one pixel from its exponentials, which are left in `powers`; returns their sum.
SETR_FAST_INLINE float powers_of(const Column& c, float weight, float* powers, float& shift, float& largest) {
  Vector sum = Vector{}, best = Vector{} + kPad, top, step, score;
  for (int64_t i = 0; i < c.padded; i += kLanes) {
    load(c.top + i, top), load(c.step + i, step);
    score = top + weight * step;
    best = score > best ? score : best;
    exp2_of(score);
    sum += score;
    store(score, powers + i);
  }
  largest = largest_of(best);
  shift = 0.0f;
  if (largest > kFarBelow) return sum_of(sum);
  shift = largest;
  sum = Vector{};
  for (int64_t i = 0; i < c.padded; i += kLanes) {
    load(c.top + i, top), load(c.step + i, step);
    score = (top + weight * step) - shift;
    exp2_of(score);
    sum += score;
    store(score, powers + i);
  }
  return sum_of(sum);
}

// Whether no class before `label` has the largest score as well: the first one counts as predicted, as in torch.
SETR_FAST_INLINE bool is_first(const Column& c, float weight, float largest, int64_t label) {
  constexpr Integers kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Integers found = Integers{};
  Vector top, step;
  for (int64_t i = 0; i <= label; i += kLanes) {
    load(c.top + i, top), load(c.step + i, step);
    const Vector score = top + weight * step;
    const Integers before = kLane < (Integers{} + static_cast<int32_t>(label - i));
    found |= (score == (Vector{} + largest)) & before;
  }
  return !any_of(found);
}

// The label's score, rounded as the largest one was; `result` learns whether the label is predicted.
SETR_FAST_INLINE float score_of(const Column& c, float weight, float largest, int64_t label, BandResult& result) {
  Vector top, step;
  load(c.top + label / kLanes * kLanes, top), load(c.step + label / kLanes * kLanes, step);
  const Vector scores = top + weight * step;
  const float score = scores[label % kLanes];
  if (score == largest && is_first(c, weight, largest, label)) ++result.correct;
  return score;
}

SETR_FAST_INLINE void work_pixels(const Problem& p, Column& c, int64_t first_pixel, BandResult& result,
                                  Shares& shares) {
  shares.count = 0;
  shares.even_to_low = shares.even_to_high = 0.0f;
  const float keep = 1.0f - p.smoothing, spread = p.smoothing / static_cast<float>(p.classes);
  for (int64_t row = 0; row < c.rows; ++row) {
    const int32_t label = c.labels[row * c.stride];
    const int64_t pixel = first_pixel + row * p.width;
    if (label == kNoLabel) {
      if (p.losses) p.losses[pixel] = 0.0f;
      if (p.log_sums) p.log_sums[pixel] = 0.0f;
      continue;
    }
    const double taken = c.far ? settle(p, c, row) : 0.0;
    const float weight = c.weights[row];
    float shift, largest;
    float* powers = c.powers + shares.count * c.padded;
    const float sum = powers_of(c, weight, powers, shift, largest);
    const float score = score_of(c, weight, largest, label, result);
    const float log_sum = std::log2(sum) + shift;
    if (p.log_sums) p.log_sums[pixel] = log_sum;
    if (p.far_log_sums && c.far) p.far_log_sums[pixel] = taken + static_cast<double>(log_sum);
    const float class_weight = p.class_weights ? p.class_weights[label] : 1.0f;
    double loss = static_cast<double>(keep * class_weight) * static_cast<double>(log_sum - score);
    if (p.smoothing > 0.0f) {
      const float all = p.weight_sum * log_sum - (c.top_sum + weight * c.step_sum);
      loss += static_cast<double>(spread) * static_cast<double>(all);
    }
    result.loss += loss * kLn2;
    if (p.losses) p.losses[pixel] = static_cast<float>(loss * kLn2);
    if (!p.with_gradient) continue;
    const float gradient = p.pixel_gradients ? p.scale * p.pixel_gradients[pixel] : p.scale;
    const float of_powers = gradient * (keep * class_weight + spread * p.weight_sum) / sum;
    const float of_label = p.of_labels ? gradient * keep * class_weight : 0.0f;
    const int64_t n = shares.count++;
    shares.row[n] = row;
    shares.to_low[n] = of_powers * (1.0f - weight);
    shares.to_high[n] = of_powers * weight;
    shares.label_to_low[n] = of_label * (1.0f - weight);
    shares.label_to_high[n] = of_label * weight;
    shares.even_to_low += gradient * spread * (1.0f - weight);
    shares.even_to_high += gradient * spread * weight;
  }
}

// One vector of classes onto the four corners, one after the other: at a border two of these are the same.
SETR_FAST_INLINE void add_to(const Corners& to, int64_t i, const Vector& of_low, const Vector& of_high, float high) {
  const float low = 1.0f - high;
  Vector corner;
  load(to.low_low + i, corner), corner += of_low * low, store(corner, to.low_low + i);
  load(to.low_high + i, corner), corner += of_low * high, store(corner, to.low_high + i);
  load(to.high_low + i, corner), corner += of_high * low, store(corner, to.high_low + i);
  load(to.high_high + i, corner), corner += of_high * high, store(corner, to.high_high + i);
}

SETR_FAST_INLINE void take_labels_off(const Column& c, const Shares& shares, float high, const Corners& to) {
  const float low = 1.0f - high;
  for (int64_t n = 0; n < shares.count; ++n) {
    const int32_t label = c.labels[shares.row[n] * c.stride];
    to.low_low[label] -= shares.label_to_low[n] * low;
    to.low_high[label] -= shares.label_to_low[n] * high;
    to.high_low[label] -= shares.label_to_high[n] * low;
    to.high_high[label] -= shares.label_to_high[n] * high;
  }
}

SETR_FAST_INLINE void add_gradients(const Problem& p, const Column& c, const Shares& shares, float high,
                                    const Corners& to) {
  Vector power;
  for (int64_t i = 0; i < c.padded; i += kLanes) {
    Vector of_low = Vector{}, of_high = Vector{};
    for (int64_t n = 0; n < shares.count; ++n) {
      load(c.powers + n * c.padded + i, power);
      of_low += power * shares.to_low[n];
      of_high += power * shares.to_high[n];
    }
    if (p.smoothing > 0.0f) {
      Vector weight = Vector{} + 1.0f;
      if (p.class_weights) load(p.class_weights + i, weight);
      of_low -= weight * shares.even_to_low;  // what this leaves in the padding is never written
      of_high -= weight * shares.even_to_high;
    }
    add_to(to, i, of_low, of_high, high);
  }
  take_labels_off(c, shares, high, to);
}

// Scores at a column of pixels: at the first low row, and from there to the second.
SETR_FAST_INLINE void mix_column(const float* low_scores, const float* high_scores, int64_t left, int64_t right,
                                 float weight, int64_t padded, float* top, float* step) {
  Vector a, b, c, d;
  for (int64_t i = 0; i < padded; i += kLanes) {
    load(low_scores + left + i, a), load(low_scores + right + i, b);
    load(high_scores + left + i, c), load(high_scores + right + i, d);
    a += weight * (b - a);
    c += weight * (d - c);
    store(a, top + i), store(c - a, step + i);
  }
}

// Prepares the column of pixels at `x`, whose first is in line `begin`.
SETR_FAST_INLINE void begin_column(const Problem& p, const Columns& columns, Workspace& space, int64_t picture,
                                   int64_t x, int low, int high, Column& c) {
  const float *low_scores = space.scores[low].get(), *high_scores = space.scores[high].get();
  const int64_t left = columns.low[x] * c.padded, right = columns.high[x] * c.padded;
  c.labels = space.labels.data() + x;
  c.far = nullptr;
  if ((space.wide[low] || space.wide[high]) && is_far(p, low_scores, high_scores, left, right)) {
    mix_far(p, picture, space.score_rows[low], space.score_rows[high], x, space.far);
    c.far = &space.far;
  } else {
    mix_column(low_scores, high_scores, left, right, columns.weight[x], c.padded, c.top, c.step);
  }
}

// Pixel rows [begin, end), at most kPixelRows, between low rows `low` and `high`: indices into the workspace.
void work_rows(const Problem& p, const Columns& columns, Workspace& space, int64_t picture, int64_t begin, int64_t end,
               const float* weights, int low, int high, BandResult& result) {
  const int64_t padded = p.padded();
  const float *low_sums = space.score_sums[low].get(), *high_sums = space.score_sums[high].get();
  float *low_gradients = space.gradients[low].get(), *high_gradients = space.gradients[high].get();
  Shares shares;
  Column column{end - begin,        padded, weights, nullptr, p.width, space.top.get(), space.step.get(), 0.0f, 0.0f,
                space.powers.get(), begin,  nullptr};
  for (int64_t x = 0; x < p.width; ++x) {
    const int64_t left = columns.low[x] * padded, right = columns.high[x] * padded;
    const float weight = columns.weight[x];
    begin_column(p, columns, space, picture, x, low, high, column);
    if (p.smoothing > 0.0f) {
      const int64_t l = columns.low[x], r = columns.high[x];
      column.top_sum = low_sums[l] + weight * (low_sums[r] - low_sums[l]);
      column.step_sum = high_sums[l] + weight * (high_sums[r] - high_sums[l]) - column.top_sum;
    }
    work_pixels(p, column, (picture * p.height + begin) * p.width + x, result, shares);
    if (shares.count == 0) continue;
    add_gradients(p, column, shares, weight,
                  {low_gradients + left, low_gradients + right, high_gradients + left, high_gradients + right});
  }
}

// Turns a row of logits [w, padded] into scores; `sums` [w] gets their sums over classes where labels are smoothed.
// Returns whether one of them is below kFarApart.
bool to_scores(const Problem& p, float* scores, float* sums) {
  const int64_t padded = p.padded();
  const Vector pad = Vector{} + kPad, apart = Vector{} + kFarApart;
  Integers wide = Integers{};
  for (int64_t x = 0; x < p.low_width; ++x) {
    float* pixel = scores + x * padded;
    for (int64_t k = p.classes; k < padded; ++k) pixel[k] = -std::numeric_limits<float>::infinity();
    Vector top = Vector{} - std::numeric_limits<float>::infinity(), score;
    for (int64_t i = 0; i < padded; i += kLanes) {
      load(pixel + i, score);
      top = score > top ? score : top;
    }
    const Vector largest = Vector{} + largest_of(top);
    Vector sum = Vector{};
    for (int64_t i = 0; i < padded; i += kLanes) {
      load(pixel + i, score);
      score = (score - largest) * kLog2E;  // NaN, and from infinite logits NaN, stays
      score = score < pad ? pad : score;
      wide |= (score < apart) & (score > pad);
      store(score, pixel + i);
      if (p.smoothing == 0.0f) continue;
      Vector weight = Vector{} + 1.0f;
      if (p.class_weights) load(p.class_weights + i, weight);
      if (i + kLanes <= p.classes || p.class_weights) {
        sum += score * weight;
      } else {
        for (int64_t k = i; k < p.classes; ++k) sum[0] += pixel[k];
      }
    }
    sums[x] = sum_of(sum);
  }
  return any_of(wide);
}
