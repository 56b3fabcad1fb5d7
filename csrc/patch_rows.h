// The patches of pictures of bytes as rows of a matrix: which byte stands where, on the CPU and on CUDA alike.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SETR_FAST_PATCH_HD __host__ __device__ __forceinline__
#else
#define SETR_FAST_PATCH_HD inline
#endif

namespace setr_fast {

constexpr int kPatchChannels = 3;

// A batch of pictures of bytes [pictures, height, width, 3] and the patches that are taken from it.
struct PatchGrid {
  int64_t pictures, height, width;
  int64_t picture_step, line_step;  // bytes from one picture or line to the next; pixels lie back to back
  int64_t patch, h, w;
};

// (byte - shift) / scale per channel, fill off the picture.
struct ByteScaling {
  float shift[kPatchChannels], scale[kPatchChannels], fill[kPatchChannels];
};

// A line of a patch: `bytes` bytes of the picture from `source` on, the rest of the line is off the picture.
// In the row of its patch it starts at value `at` when pixels keep their order, and at `at` / 3 of each channel's
// patch * patch values when channels lie apart.
struct PatchLine {
  int64_t row, at, source, bytes;
};

SETR_FAST_PATCH_HD int64_t patch_lines(const PatchGrid& grid) { return grid.pictures * grid.h * grid.patch * grid.w; }

// Line `index` of all patch_lines, in the order in which they lie in the pictures.
SETR_FAST_PATCH_HD PatchLine patch_line(const PatchGrid& grid, int64_t index) {
  const int64_t column = index % grid.w;
  const int64_t line = index / grid.w % (grid.h * grid.patch);
  const int64_t picture = index / grid.w / (grid.h * grid.patch);
  const int64_t down = line / grid.patch;
  const int64_t x = column * grid.patch;
  int64_t pixels = line < grid.height ? grid.width - x : 0;
  pixels = pixels < 0 ? 0 : (pixels > grid.patch ? grid.patch : pixels);
  return {(picture * grid.h + down) * grid.w + column, (line - down * grid.patch) * grid.patch * kPatchChannels,
          picture * grid.picture_step + line * grid.line_step + x * kPatchChannels, pixels * kPatchChannels};
}

// A thread of a GPU takes this many values of a line; the last piece of a line may have fewer.
constexpr int kPiece = 16;

SETR_FAST_PATCH_HD int64_t pieces_of_line(const PatchGrid& grid) {
  return (grid.patch * kPatchChannels + kPiece - 1) / kPiece;
}

// What one thread does. Memory: load(from, count, bytes) fills bytes[0..count), store(to, count, values) writes
// values[0..count) side by side, put(to, value) writes one.
template <class Memory>
SETR_FAST_PATCH_HD void patch_piece(const PatchGrid& grid, const ByteScaling& scaling, bool planar, int64_t index,
                                    const Memory& memory) {
  const int64_t pieces = pieces_of_line(grid);
  const PatchLine line = patch_line(grid, index / pieces);
  const int64_t first = index % pieces * kPiece;
  const int64_t length = grid.patch * kPatchChannels - first;
  const int count = static_cast<int>(length < kPiece ? length : kPiece);
  const int64_t inside = line.bytes - first;
  const int known = static_cast<int>(inside < 0 ? 0 : (inside < count ? inside : count));
  // Channels of the piece's first three values: 16 is one more than five pixels.
  const int phase = static_cast<int>(index % pieces % kPatchChannels);
  float shift[kPatchChannels], scale[kPatchChannels], fill[kPatchChannels];
  for (int i = 0; i < kPatchChannels; ++i) {
    const bool none = i + phase == 0 || i + phase == 3, one = i + phase == 1 || i + phase == 4;
    shift[i] = none ? scaling.shift[0] : (one ? scaling.shift[1] : scaling.shift[2]);
    scale[i] = none ? scaling.scale[0] : (one ? scaling.scale[1] : scaling.scale[2]);
    fill[i] = none ? scaling.fill[0] : (one ? scaling.fill[1] : scaling.fill[2]);
  }
  uint8_t bytes[kPiece];
  memory.load(line.source + first, known, bytes);
  float values[kPiece];
  for (int i = 0; i < kPiece; ++i) {
    const int c = i % kPatchChannels;
    values[i] = i < known ? (static_cast<float>(bytes[i]) - shift[c]) / scale[c] : fill[c];
  }
  const int64_t row = line.row * grid.patch * grid.patch * kPatchChannels;
  if (!planar) {
    memory.store(row + line.at + first, count, values);
    return;
  }
  const int64_t plane = grid.patch * grid.patch;
  for (int i = 0; i < kPiece; ++i) {
    const int64_t value = first + i;
    if (i < count)
      memory.put(row + value % kPatchChannels * plane + line.at / kPatchChannels + value / kPatchChannels, values[i]);
  }
}

}  // namespace setr_fast
