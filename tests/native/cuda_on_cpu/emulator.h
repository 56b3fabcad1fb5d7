// Runs CUDA kernels on the CPU for the tests: a block's threads are fibers that take turns at barriers and warp
// exchanges, one block after the other. It proves logic, not speed, and holds a kernel to more than a GPU does:
//   - shared memory is NaN before each block; every launch can run its threads forwards or backwards (thread_order), so
//     that a missing barrier changes the result;
//   - memory of `guarded` ends at a page that must not be touched: an access beyond it is this launch's error, with the
//     block and thread that made it;
//   - a copy of cp.async arrives when it is waited for, and its destination is NaN until then;
//   - lanes must meet in every exchange, all threads of a block at every barrier.
// The sources are our own .cu files; cuda_on_cpu.py rewrites the launch syntax and extern shared memory.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned int x, y, z;
};
struct alignas(8) uint2 {
  unsigned int x, y;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunch = 719
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace cuda_on_cpu {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kSharedBytes = 227 << 10;         // of a block, on the largest card
constexpr size_t kSharedWithoutAsking = 48 << 10;  // what a kernel gets that did not ask for more
constexpr unsigned int kWarp = 32;
constexpr size_t kSlotBytes = 64;  // what a lane may put into an exchange

enum class Waits { kNothing, kBarrier, kExchange, kDone };

struct Fiber {
  ucontext_t context;
  jmp_buf here;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool started = false;
};

struct PendingCopy {  // of 16 bytes
  void* to;
  const void* from;
  int group;
};

struct Thread {
  uint3 index{};
  Waits waits = Waits::kNothing;
  Fiber* fiber = nullptr;
  uint64_t exchanges = 0;  // made so far
  std::vector<PendingCopy> copies;
  int groups = 0;  // of copies committed so far
};

struct Exchange {
  uint64_t number = ~uint64_t{0};  // of the warp's exchanges
  uint64_t id = 0;                 // of all
  unsigned int arrived = 0;
  size_t bytes = 0;
  alignas(16) unsigned char slots[kWarp][kSlotBytes];
};

struct Warp {
  unsigned int lanes = 0;
  Exchange exchanges[2];  // a lane is at most one ahead of another
};

struct State {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  std::function<void()> body;
  uint64_t exchanges = 0;
  size_t current = 0, alive = 0, at_barrier = 0;
  jmp_buf scheduler;
  sigjmp_buf failure;
  bool running = false;
  std::string kernel, error;
  cudaError_t last = cudaSuccess;
  std::map<const void*, size_t> shared_limit;
  alignas(128) unsigned char shared[kSharedBytes];
};

inline State state;
inline bool backwards = false;  // run threads from the last to the first
inline int64_t launches = 0;    // since the library was loaded

inline std::string place() {
  char text[160];
  std::snprintf(text, sizeof(text), "block (%u, %u, %u), thread (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z,
                threadIdx.x, threadIdx.y, threadIdx.z);
  return text;
}

[[noreturn]] inline void fail(const std::string& what) {
  state.error = what + " at " + place();
  siglongjmp(state.failure, 1);
}

inline void on_bad_access(int) {
  if (!state.running) {
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  fail("memory that is not the kernel's is touched");
}

inline void enter(size_t thread) {
  state.current = thread;
  threadIdx = state.threads[thread].index;
}

// Back to the scheduler; returns when this thread's turn comes again.
inline void yield(Waits what) {
  Thread& thread = state.threads[state.current];
  thread.waits = what;
  if (_setjmp(thread.fiber->here) == 0) _longjmp(state.scheduler, 1);
}

inline void fiber_main() {
  for (;;) {
    state.body();
    Thread& thread = state.threads[state.current];
    if (!thread.copies.empty()) fail("a copy is never waited for");
    --state.alive;
    state.idle.push_back(thread.fiber);
    yield(Waits::kDone);
  }
}

inline void resume(size_t index) {
  enter(index);
  Thread& thread = state.threads[index];
  thread.waits = Waits::kNothing;
  if (thread.fiber == nullptr) {
    if (state.idle.empty()) {
      state.fibers.push_back(std::make_unique<Fiber>());
      state.idle.push_back(state.fibers.back().get());
    }
    thread.fiber = state.idle.back();
    state.idle.pop_back();
  }
  Fiber& fiber = *thread.fiber;
  if (_setjmp(state.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  setcontext(&fiber.context);
}

inline Exchange& exchange_of(const Thread& thread, size_t index, uint64_t number) {
  (void)thread;
  return state.warps[index / kWarp].exchanges[number % 2];
}

inline bool may_run(size_t index) {
  const Thread& thread = state.threads[index];
  if (thread.waits == Waits::kDone || thread.waits == Waits::kBarrier) return false;
  if (thread.waits == Waits::kNothing) return true;
  return exchange_of(thread, index, thread.exchanges - 1).arrived == state.warps[index / kWarp].lanes;
}

inline void run_block() {
  const size_t count = state.threads.size();
  state.alive = count;
  state.at_barrier = 0;
  while (state.alive > 0) {
    bool moved = false;
    for (size_t turn = 0; turn < count; ++turn) {
      const size_t index = backwards ? count - 1 - turn : turn;
      if (!may_run(index)) continue;
      resume(index);
      moved = true;
    }
    if (moved) continue;
    if (state.at_barrier == 0) fail("lanes wait for lanes that never come");
    if (state.at_barrier != state.alive || state.alive != count) fail("not all threads of the block come to a barrier");
    state.at_barrier = 0;
    for (Thread& thread : state.threads) thread.waits = Waits::kNothing;
  }
}

// Every lane's value of one exchange, kSlotBytes apart; all lanes of the warp must come.
inline const Exchange& exchange(const void* mine, size_t bytes) {
  Thread& thread = state.threads[state.current];
  const uint64_t number = thread.exchanges++;
  Exchange& exchange = exchange_of(thread, state.current, number);
  if (exchange.number != number) {
    exchange.number = number;
    exchange.id = ++state.exchanges;
    exchange.arrived = 0;
    exchange.bytes = bytes;
  }
  if (exchange.bytes != bytes) fail("lanes of a warp are at different exchanges");
  if (bytes > 0) std::memcpy(exchange.slots[state.current % kWarp], mine, bytes);
  exchange.arrived |= 1u << (state.current % kWarp);
  if (exchange.arrived != state.warps[state.current / kWarp].lanes) yield(Waits::kExchange);
  return exchange;
}

inline unsigned int lane() { return static_cast<unsigned int>(state.current % kWarp); }

inline void whole_warp(unsigned int mask) {
  if (mask != 0xffffffffu) fail("an exchange names some lanes only, which this emulator does not know");
}

inline void* shared_memory() { return state.shared; }

inline cudaError_t run(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared,
                       std::function<void()> body) {
  state.kernel = name;
  const size_t count = size_t{1} * block.x * block.y * block.z;
  const auto limit = state.shared_limit.find(kernel);
  const size_t allowed = limit == state.shared_limit.end() ? kSharedWithoutAsking : limit->second;
  if (count == 0 || count > 1024 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 ||
      grid.z == 0 || grid.z > 65535 || shared > allowed) {
    state.error = "a launch beyond the limits of a card";
    return state.last = cudaErrorInvalidConfiguration;
  }
  struct sigaction action{}, before;
  action.sa_handler = on_bad_access;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);
  state.body = std::move(body);
  blockDim = block;
  gridDim = grid;
  ++launches;
  if (sigsetjmp(state.failure, 1) == 0) {
    state.running = true;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
      for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
          std::memset(state.shared, 0xff, sizeof(state.shared));
          state.threads.clear();
          state.threads.resize(count);
          state.warps.assign((count + kWarp - 1) / kWarp, Warp{});
          for (size_t i = 0; i < count; ++i) {
            state.threads[i].index = {static_cast<unsigned int>(i % block.x),
                                      static_cast<unsigned int>(i / block.x % block.y),
                                      static_cast<unsigned int>(i / block.x / block.y)};
            state.warps[i / kWarp].lanes |= 1u << (i % kWarp);
          }
          run_block();
          if (std::any_of(state.shared + shared, state.shared + kSharedBytes, [](auto b) { return b != 0xff; })) {
            fail("shared memory beyond what was asked for is written");
          }
        }
      }
    }
  } else {  // what the fibers were at is lost with them
    state.fibers.clear();
    state.idle.clear();
    state.last = cudaErrorLaunch;
  }
  state.running = false;
  sigaction(SIGSEGV, &before, nullptr);
  return state.last;
}

template <class... P>
auto launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared = 0,
            cudaStream_t stream = nullptr) {
  (void)stream;
  return [=](P... arguments) {
    run(name, reinterpret_cast<const void*>(kernel), grid, block, shared, [&] { kernel(arguments...); });
  };
}

}  // namespace cuda_on_cpu

#include "device_functions.h"
