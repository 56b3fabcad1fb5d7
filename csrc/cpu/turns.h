// Tasks over torch's threads, in order: as many parts as threads, each part one thread's until its own is done.
//
// Neighbouring tasks share what a thread has prepared, so a thread goes through one part; what a thread that woke late
// or was held up has left is taken by the others.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace setr_fast {

struct Part {
  std::atomic<int64_t> next;
  int64_t end;
};

// One thread's way through all parts, its own first.
class Turns {
 public:
  Turns(std::vector<Part>& parts, int64_t own) : parts_(parts), at_(static_cast<size_t>(own)) {}

  // The next task, or -1 when none is left.
  int64_t next() {
    for (; visited_ < parts_.size(); ++visited_, at_ = (at_ + 1) % parts_.size()) {
      const int64_t task = parts_[at_].next++;
      if (task < parts_[at_].end) return task;
    }
    return -1;
  }

 private:
  std::vector<Part>& parts_;
  size_t at_, visited_ = 0;
};

// Runs `work(turns)` on every thread.
template <class Work>
void take_turns(int64_t tasks, const Work& work) {
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), tasks));
  std::vector<Part> parts(static_cast<size_t>(threads));
  for (int64_t i = 0; i < threads; ++i) {
    parts[i].next = tasks * i / threads;
    parts[i].end = tasks * (i + 1) / threads;
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t own = begin; own < end; ++own) {
      Turns turns(parts, own);
      work(turns);
    }
  });
}

}  // namespace setr_fast
