// Sums over pixels of each class's probability, and their gradient: included beside upsample_cross_entropy_pixels.h,
// once per instruction set. With q_k what a sum's slopes make of p_k, the gradient of score k is
// p_k (q_k - sum_j p_j q_j); q_k is a label's slope and a power's slope, so one pass over the exponentials is enough.

// Adds one column's pixels to the sums; 16 of them at most, so float32 serves until then.
SETR_FAST_INLINE void sum_column(const Problem& p, Column& c, BandResult& result, float* factors) {
  double *of_labels = result.sums.data(), *of_powers = of_labels + c.padded;
  int64_t count = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    const int32_t label = c.labels[row * c.stride];
    if (label == kNoLabel) continue;
    if (c.far) settle(p, c, row);
    float shift, largest;
    float* powers = c.powers + count * c.padded;
    const float share = 1.0f / powers_of(c, c.weights[row], powers, shift, largest);
    score_of(c, c.weights[row], largest, label, result);
    of_labels[label] += static_cast<double>(powers[label] * share);
    factors[count++] = p.exponent == 2 ? share * share : share;
  }
  Vector power;
  for (int64_t i = 0; i < c.padded; i += kLanes) {
    Vector sum = Vector{};
    for (int64_t n = 0; n < count; ++n) {
      load(c.powers + n * c.padded + i, power);
      if (p.exponent == 2) power *= power;
      sum += power * factors[n];
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) of_powers[i + lane] += static_cast<double>(sum[lane]);
  }
}

SETR_FAST_INLINE void pull_column(const Problem& p, Column& c, float high, const Corners& to, Shares& shares) {
  float even_low[kPixelRows], even_high[kPixelRows];  // sum_j p_j q_j, of the exponentials
  Vector power, slope;
  shares.count = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    const int32_t label = c.labels[row * c.stride];
    if (label == kNoLabel) continue;
    if (c.far) settle(p, c, row);
    const float weight = c.weights[row];
    float shift, largest;
    float* powers = c.powers + shares.count * c.padded;
    const float share = 1.0f / powers_of(c, weight, powers, shift, largest);
    Vector sum = Vector{};
    for (int64_t i = 0; i < c.padded; i += kLanes) {
      load(powers + i, power), load(p.power_slopes + i, slope);
      if (p.exponent == 2) power *= power;
      sum += power * slope;
    }
    const float factor = p.exponent == 2 ? share * share : share;
    const float of_label = p.label_slopes[label] * (powers[label] * share);
    const float even = (sum_of(sum) * factor + of_label) * share;
    const int64_t n = shares.count++;
    shares.row[n] = row;
    shares.to_low[n] = factor * (1.0f - weight);
    shares.to_high[n] = factor * weight;
    even_low[n] = even * (1.0f - weight);
    even_high[n] = even * weight;
    shares.label_to_low[n] = -of_label * (1.0f - weight);
    shares.label_to_high[n] = -of_label * weight;
  }
  if (shares.count == 0) return;
  for (int64_t i = 0; i < c.padded; i += kLanes) {
    Vector of_low = Vector{}, of_high = Vector{}, off_low = Vector{}, off_high = Vector{};
    for (int64_t n = 0; n < shares.count; ++n) {
      load(c.powers + n * c.padded + i, power);
      off_low += power * even_low[n];
      off_high += power * even_high[n];
      if (p.exponent == 2) power *= power;
      of_low += power * shares.to_low[n];
      of_high += power * shares.to_high[n];
    }
    load(p.power_slopes + i, slope);
    of_low = of_low * slope - off_low;
    of_high = of_high * slope - off_high;
    add_to(to, i, of_low, of_high, high);
  }
  take_labels_off(c, shares, high, to);
}

template <bool kPull>
SETR_FAST_INLINE void rows_of_sums(const Problem& p, const Columns& columns, Workspace& space, int64_t picture,
                                   int64_t begin, int64_t end, const float* weights, int low, int high,
                                   BandResult& result) {
  const int64_t padded = p.padded();
  float *low_gradients = space.gradients[low].get(), *high_gradients = space.gradients[high].get();
  Shares shares;
  Column column{end - begin,        padded, weights, nullptr, p.width, space.top.get(), space.step.get(), 0.0f, 0.0f,
                space.powers.get(), begin,  nullptr};
  for (int64_t x = 0; x < p.width; ++x) {
    const int64_t left = columns.low[x] * padded, right = columns.high[x] * padded;
    const float weight = columns.weight[x];
    begin_column(p, columns, space, picture, x, low, high, column);
    if (kPull) {
      const Corners to{low_gradients + left, low_gradients + right, high_gradients + left, high_gradients + right};
      pull_column(p, column, weight, to, shares);
    } else {
      sum_column(p, column, result, shares.to_low);
    }
  }
}

void sum_rows(const Problem& p, const Columns& columns, Workspace& space, int64_t picture, int64_t begin, int64_t end,
              const float* weights, int low, int high, BandResult& result) {
  rows_of_sums<false>(p, columns, space, picture, begin, end, weights, low, high, result);
}

void pull_rows(const Problem& p, const Columns& columns, Workspace& space, int64_t picture, int64_t begin, int64_t end,
               const float* weights, int low, int high, BandResult& result) {
  rows_of_sums<true>(p, columns, space, picture, begin, end, weights, low, high, result);
}
