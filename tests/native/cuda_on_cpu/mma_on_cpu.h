// The functions of csrc/cuda/mma.h for emulator.h.
#pragma once

#include "emulator.h"
#include "float16.h"

namespace setr_fast {

inline void copy_async_16(void* shared, const void* global) {
  using namespace cuda_on_cpu;
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    fail("a copy of 16 bytes is not on 16 bytes");
  }
  Thread& thread = state.threads[state.current];
  std::memset(shared, 0xff, 16);
  thread.copies.push_back({shared, global, thread.groups});
}

inline void copy_async_commit() { ++cuda_on_cpu::state.threads[cuda_on_cpu::state.current].groups; }

template <int kPending>
void copy_async_wait() {
  using namespace cuda_on_cpu;
  Thread& thread = state.threads[state.current];
  auto done = thread.copies.begin();
  for (; done != thread.copies.end() && done->group < thread.groups - kPending; ++done) {
    std::memcpy(done->to, done->from, 16);
  }
  thread.copies.erase(thread.copies.begin(), done);
}

// The operands of one product, put together from the fragments of all lanes.
struct Operands {
  uint64_t of = 0;  // id of the exchange
  float a[16][16], b[8][16];
};
inline Operands operands;

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using namespace cuda_on_cpu;
  struct Fragments {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  const Exchange& all = exchange(&mine, sizeof(mine));
  if (operands.of != all.id) {
    operands.of = all.id;
    for (unsigned int lane = 0; lane < kWarp; ++lane) {
      const auto of_lane = from_lane<Fragments>(all.slots[0], lane);
      const unsigned int g = lane / 4, t = lane % 4;
      for (unsigned int i = 0; i < 8; ++i) {  // register i / 2, its lower or upper half
        const auto half = [&](uint32_t pair) { return __half2float({static_cast<uint16_t>(pair >> 16 * (i % 2))}); };
        operands.a[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] = half(of_lane.a[i / 2]);
        if (i < 4) operands.b[g][2 * t + i / 2 * 8 + i % 2] = half(of_lane.b[i / 2]);
      }
    }
  }
  const unsigned int row = lane() / 4, column = 2 * (lane() % 4);
  for (unsigned int i = 0; i < 4; ++i) {
    float sum = 0.0f;
    for (unsigned int k = 0; k < 16; ++k) sum += operands.a[row + i / 2 * 8][k] * operands.b[column + i % 2][k];
    d[i] += sum;
  }
}

}  // namespace setr_fast
