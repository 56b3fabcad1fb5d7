// Products of bytes and weights in whole numbers, by the instructions that multiply 4 x 8 bits (AVX-512 VNNI).
//
// A weight w becomes q = round(w * steps), a whole number of 24 or 16 bits with `steps` per output channel, and q its
// digits of base 256, three or two signed bytes. Sums of byte * digit are exact in whatever order; what is rounded is q
// and, once, the total.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace setr_fast {

constexpr int64_t kLanes = 16;       // output channels that are multiplied at once
constexpr int64_t kTilePatches = 8;  // patches likewise: 8 x 3 sums, 3 digits and the bytes fill 28 of 32 registers

// Whether this processor has the instructions; everything below needs them.
bool vnni_works();

// What the weights are made of: D rows of `depth` values in the order (channel, y, x) of a patch.
struct PatchWeights {
  const void* data;
  bool bfloat16;
  int64_t width, patch;
  const float* std;       // per channel of a picture
  const uint8_t* centre;  // likewise: taken off every byte before it is multiplied
  const float* moved;     // likewise: (centre - mean) / std
  int64_t depth() const { return 3 * patch * patch; }
};

struct FreeMemory {
  void operator()(void* memory) const;
};

// Digits of all weights, with the inputs in the order (y, x, channel) of a picture, four by four.
struct WeightDigits {
  int64_t blocks, quads, digits;               // quads: the last one is filled up with zeros
  std::unique_ptr<int8_t, FreeMemory> values;  // [blocks, quads, digits, kLanes, 4]
  std::vector<int32_t> start;                  // [blocks, digits, kLanes]: sum of -centre * digit
  std::vector<float> step;                     // [blocks, kLanes]: what one of q is worth
  std::vector<float> moved;                    // [blocks, kLanes]: sum of weight * moved

  WeightDigits(int64_t width, int64_t depth, int64_t digits);
};

// Fill blocks [begin, end) of `to`.
void fill_digits(const PatchWeights& weights, WeightDigits& to, int64_t begin, int64_t end);

// Where a patch's token and its position embedding start, in values, and what [D] is added besides.
struct Place {
  const float* rest;
  int64_t position, token;
};

// Positions and tokens, of float32 or bfloat16 each; tokens are bfloat16 where positions are, and not always then.
struct Target {
  const void* positions;
  void* tokens;
  bool half_positions, half_tokens;
  int64_t width;
};

// Asks for the memory that multiply_tile will touch for `count` patches. A row of tokens is some pages long: no
// processor foresees the next one.
void ask_for(const Target& target, const Place* places, int64_t count, int64_t block);

// token[p, lane] = step * sum of (byte - centre) * q + rest + position, for the channels of a block and the first
// `count` of kTilePatches rows of 4 * quads bytes.
void multiply_tile(const WeightDigits& weights, int64_t block, const uint8_t* rows, const Target& target,
                   const Place* places, int64_t count);

}  // namespace setr_fast
