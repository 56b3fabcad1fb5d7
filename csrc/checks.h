// Errors of the compiled routines, worded as in setr_fast/errors.py: "<where>: <what> must <rule>, got <value>".
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace setr_fast {

// Reaches Python as a ValueError, from a pybind11 function and from a torch op alike.
class ShapeError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (!holds) throw ShapeError(text(parts...));
}

inline std::string pair_text(int64_t first, int64_t second) { return text("(", first, ", ", second, ")"); }

}  // namespace setr_fast
