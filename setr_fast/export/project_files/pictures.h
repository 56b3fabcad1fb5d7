// Pictures from PNG (8 bits per channel, not interlaced) and PPM files, class maps to PNG; no library is needed.
// Formats: RFC 1950 (zlib), RFC 1951 (deflate), W3C PNG third edition, Netpbm's ppm(5).
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace pictures {

using Bytes = std::vector<uint8_t>;

struct Picture {
  int64_t height = 0, width = 0;
  Bytes rgb;  // [height, width, 3]
};

inline void need(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

// ---- deflate -------------------------------------------------------------------------------------------------------

// Bits of a stream, lowest first.
class Bits {
 public:
  Bits(const uint8_t* at, const uint8_t* end) : at_(at), end_(end) {}

  uint32_t take(int count) {
    while (held_ < count) {
      need(at_ < end_, "PNG: compressed data must be whole, got a cut file");
      word_ |= static_cast<uint64_t>(*at_++) << held_;
      held_ += 8;
    }
    const auto bits = static_cast<uint32_t>(word_ & ((uint64_t{1} << count) - 1));
    word_ >>= count;
    held_ -= count;
    return bits;
  }

  void drop_to_byte() { take(held_ % 8); }

 private:
  const uint8_t *at_, *end_;
  uint64_t word_ = 0;
  int held_ = 0;
};

// A canonical Huffman code: how many codes there are of each length, and the symbols in order of their codes.
class Code {
 public:
  explicit Code(const std::vector<uint8_t>& lengths) {
    for (const uint8_t length : lengths) ++count_[length];
    count_[0] = 0;
    std::array<int, 17> next{};
    for (int length = 1; length < 16; ++length) next[length + 1] = next[length] + count_[length];
    symbols_.resize(lengths.size());
    for (size_t symbol = 0; symbol < lengths.size(); ++symbol) {
      if (lengths[symbol] != 0) symbols_[next[lengths[symbol]]++] = static_cast<int>(symbol);
    }
  }

  int next(Bits& bits) const {
    int code = 0, first = 0, index = 0;
    for (int length = 1; length < 16; ++length) {
      code |= static_cast<int>(bits.take(1));
      if (code - first < count_[length]) return symbols_[index + code - first];
      index += count_[length];
      first = (first + count_[length]) * 2;
      code *= 2;
    }
    throw std::runtime_error("PNG: compressed data must hold codes of its table, got another");
  }

 private:
  std::array<int, 16> count_{};
  std::vector<int> symbols_;
};

inline void inflate_block(Bits& bits, const Code& literals, const Code& distances, size_t limit, Bytes& out) {
  for (;;) {
    int symbol = literals.next(bits);
    if (symbol == 256) return;
    if (symbol < 256) {
      need(out.size() < limit, "PNG: compressed data must fit the picture, got more");
      out.push_back(static_cast<uint8_t>(symbol));
      continue;
    }
    symbol -= 257;
    need(symbol < 29, "PNG: compressed data must hold lengths up to 258, got another");
    int length = symbol + 3;
    if (symbol >= 8) {
      const int extra = (symbol - 4) / 4;
      length = symbol == 28 ? 258 : (((symbol & 3) | 4) << extra) + 3 + static_cast<int>(bits.take(extra));
    }
    const int far = distances.next(bits);
    need(far < 30, "PNG: compressed data must hold distances up to 32768, got another");
    size_t distance = far + 1;
    if (far >= 4) {
      const int extra = far / 2 - 1;
      distance = (static_cast<size_t>((far & 1) | 2) << extra) + 1 + bits.take(extra);
    }
    need(distance <= out.size() && out.size() + length <= limit, "PNG: compressed data must stay inside the picture");
    for (; length > 0; --length) out.push_back(out[out.size() - distance]);
  }
}

inline void read_codes(Bits& bits, std::vector<uint8_t>& literals, std::vector<uint8_t>& distances) {
  static constexpr int order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  const size_t num_literals = bits.take(5) + 257, num_distances = bits.take(5) + 1, num_lengths = bits.take(4) + 4;
  std::vector<uint8_t> of_lengths(19, 0), all;
  for (size_t i = 0; i < num_lengths; ++i) of_lengths[order[i]] = static_cast<uint8_t>(bits.take(3));
  const Code code(of_lengths);
  while (all.size() < num_literals + num_distances) {
    const int symbol = code.next(bits);
    if (symbol < 16) {
      all.push_back(static_cast<uint8_t>(symbol));
      continue;
    }
    need(symbol > 16 || !all.empty(), "PNG: compressed data must not repeat what is not there");
    const uint8_t value = symbol == 16 ? all.back() : 0;
    const uint32_t times = symbol == 16 ? bits.take(2) + 3 : symbol == 17 ? bits.take(3) + 3 : bits.take(7) + 11;
    all.insert(all.end(), times, value);
  }
  need(all.size() == num_literals + num_distances, "PNG: compressed data must hold as many code lengths as it says");
  literals.assign(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(num_literals));
  distances.assign(all.begin() + static_cast<std::ptrdiff_t>(num_literals), all.end());
}

// Unpacks a zlib stream of exactly `size` bytes.
inline Bytes inflate(const Bytes& packed, size_t size) {
  need(packed.size() > 2, "PNG: compressed data must be there, got none");
  Bits bits(packed.data() + 2, packed.data() + packed.size());
  Bytes out;
  out.reserve(size);
  bool last = false;
  while (!last) {
    last = bits.take(1) != 0;
    const uint32_t kind = bits.take(2);
    std::vector<uint8_t> literals(288, 8), distances(30, 5);
    if (kind == 0) {
      bits.drop_to_byte();
      const uint32_t length = bits.take(16);
      bits.take(16);
      need(out.size() + length <= size, "PNG: compressed data must fit the picture, got more");
      for (uint32_t i = 0; i < length; ++i) out.push_back(static_cast<uint8_t>(bits.take(8)));
      continue;
    }
    need(kind < 3, "PNG: compressed data must be of a known kind, got another");
    if (kind == 2) {
      read_codes(bits, literals, distances);
    } else {
      std::fill(literals.begin() + 144, literals.begin() + 256, uint8_t{9});
      std::fill(literals.begin() + 256, literals.begin() + 280, uint8_t{7});
    }
    inflate_block(bits, Code(literals), Code(distances), size, out);
  }
  need(out.size() == size, "PNG: picture must be whole, got a part");
  return out;
}

// ---- files ---------------------------------------------------------------------------------------------------------

inline uint32_t big_endian(const uint8_t* at) {
  return static_cast<uint32_t>(at[0]) << 24 | at[1] << 16 | at[2] << 8 | at[3];
}

inline uint8_t predicted(int filter, int left, int up, int corner) {
  if (filter == 1) return static_cast<uint8_t>(left);
  if (filter == 2) return static_cast<uint8_t>(up);
  if (filter == 3) return static_cast<uint8_t>((left + up) / 2);
  if (filter != 4) return 0;
  const int guess = left + up - corner, a = std::abs(guess - left), b = std::abs(guess - up);
  const int c = std::abs(guess - corner);
  return static_cast<uint8_t>(a <= b && a <= c ? left : b <= c ? up : corner);
}

inline Picture read_png(const Bytes& file) {
  int64_t height = 0, width = 0, channels = 0;
  bool indexed = false;
  Bytes packed, palette;
  for (size_t at = 8; at + 12 <= file.size();) {
    const size_t length = big_endian(&file[at]);
    need(at + 12 + length <= file.size(), "PNG: chunks must be whole, got a cut file");
    const std::string name(file.begin() + static_cast<std::ptrdiff_t>(at) + 4,
                           file.begin() + static_cast<std::ptrdiff_t>(at) + 8);
    const uint8_t* data = &file[at] + 8;
    if (name == "IHDR") {
      need(length == 13 && data[8] == 8 && data[12] == 0, "PNG: must have 8 bits per channel and no interlace");
      static constexpr int of_kind[7] = {1, 0, 3, 1, 2, 0, 4};
      need(data[9] < 7 && of_kind[data[9]] != 0, "PNG: must be of a known colour type");
      width = big_endian(data), height = big_endian(data + 4), channels = of_kind[data[9]], indexed = data[9] == 3;
      need(width > 0 && height > 0 && width * height < int64_t{1} << 30, "PNG: must have 1 to 2^30 pixels");
    } else if (name == "PLTE") {
      palette.assign(data, data + length);
    } else if (name == "IDAT") {
      packed.insert(packed.end(), data, data + length);
    }
    at += 12 + length;
  }
  need(channels > 0, "PNG: must begin with its header, got none");
  const int64_t line = width * channels;
  Bytes lines = inflate(packed, static_cast<size_t>(height * (line + 1)));
  Picture picture{height, width, Bytes(static_cast<size_t>(height * width * 3))};
  palette.resize(768, 0);
  for (int64_t y = 0; y < height; ++y) {
    uint8_t* row = &lines[y * (line + 1)] + 1;
    const uint8_t* above = y > 0 ? row - line - 1 : nullptr;
    for (int64_t x = 0; x < line; ++x) {
      const int left = x >= channels ? row[x - channels] : 0, up = above ? above[x] : 0;
      row[x] =
          static_cast<uint8_t>(row[x] + predicted(row[-1], left, up, above && x >= channels ? above[x - channels] : 0));
    }
    for (int64_t x = 0; x < width; ++x) {
      const uint8_t* pixel = indexed ? &palette[3 * row[x]] : row + x * channels;
      const bool grey = !indexed && channels < 3;
      for (int c = 0; c < 3; ++c) picture.rgb[(y * width + x) * 3 + c] = pixel[grey ? 0 : c];
    }
  }
  return picture;
}

inline Picture read_ppm(const Bytes& file) {
  size_t at = 2;
  int64_t numbers[3] = {0, 0, 0};  // width, height, largest value
  for (int64_t& number : numbers) {
    while (at < file.size() && (std::isspace(file[at]) || file[at] == '#')) {
      if (file[at] == '#') {
        while (at < file.size() && file[at] != '\n') ++at;
      } else {
        ++at;
      }
    }
    while (at < file.size() && std::isdigit(file[at]) && number < int64_t{1} << 30)
      number = number * 10 + file[at++] - '0';
  }
  const int64_t count = numbers[0] * numbers[1] * 3;
  need(numbers[2] == 255 && count > 0 && count < int64_t{1} << 32, "PPM: must be P6 with values up to 255");
  need(file.size() > at && static_cast<int64_t>(file.size() - at - 1) >= count, "PPM: must be whole, got a cut file");
  const auto* data = file.data() + at + 1;
  return {numbers[1], numbers[0], Bytes(data, data + count)};
}

// Reads a PNG or PPM file; an alpha channel is dropped, grey repeated.
inline Picture read(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  need(stream.good(), path + ": must be a file that can be read");
  const Bytes file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (file.size() > 8 && file[0] == 0x89 && file[1] == 'P' && file[2] == 'N' && file[3] == 'G') return read_png(file);
  need(file.size() > 2 && file[0] == 'P' && file[1] == '6', path + ": must be a PNG or a PPM file (P6)");
  return read_ppm(file);
}

inline uint32_t crc(const Bytes& bytes, size_t begin) {
  uint32_t sum = 0xffffffffu;
  for (size_t at = begin; at < bytes.size(); ++at) {
    sum ^= bytes[at];
    for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1) ^ (sum & 1 ? 0xedb88320u : 0u);
  }
  return ~sum;
}

inline void put(Bytes& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<uint8_t>(value >> shift));
}

inline void put_chunk(Bytes& out, const char* name, const Bytes& data) {
  put(out, static_cast<uint32_t>(data.size()));
  const size_t begin = out.size();
  out.insert(out.end(), name, name + 4);
  out.insert(out.end(), data.begin(), data.end());
  put(out, crc(out, begin));
}

// Writes values of 1 or 2 bytes (in this machine's order) as a grey PNG, stored without compression.
inline void write_png(const std::string& path, const uint8_t* values, int64_t height, int64_t width, int depth) {
  Bytes lines, packed{0x78, 0x01};
  uint32_t low = 1, high = 0;  // Adler-32
  for (int64_t y = 0; y < height; ++y) {
    lines.push_back(0);
    for (int64_t x = 0; x < width * depth; ++x) {
      const int64_t place = depth == 2 ? x ^ 1 : x;  // PNG has the high byte first
      lines.push_back(values[y * width * depth + place]);
    }
  }
  for (size_t at = 0; at < lines.size(); at += 65535) {
    const size_t length = std::min<size_t>(65535, lines.size() - at);
    packed.push_back(at + length == lines.size());
    for (const size_t number : {length, ~length}) {
      packed.push_back(static_cast<uint8_t>(number));
      packed.push_back(static_cast<uint8_t>(number >> 8));
    }
    packed.insert(packed.end(), lines.begin() + static_cast<std::ptrdiff_t>(at),
                  lines.begin() + static_cast<std::ptrdiff_t>(at + length));
  }
  for (const uint8_t byte : lines) {
    low = (low + byte) % 65521;
    high = (high + low) % 65521;
  }
  put(packed, high << 16 | low);
  Bytes out{0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'}, header;
  put(header, static_cast<uint32_t>(width));
  put(header, static_cast<uint32_t>(height));
  for (const int value : {8 * depth, 0, 0, 0, 0}) header.push_back(static_cast<uint8_t>(value));
  put_chunk(out, "IHDR", header);
  put_chunk(out, "IDAT", packed);
  put_chunk(out, "IEND", {});
  std::ofstream stream(path, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(out.data()), static_cast<std::streamsize>(out.size()));
  need(stream.good(), path + ": must be a file that can be written");
}

}  // namespace pictures
