// Switches valgrind's counting on and off from Python, through ctypes. Built by benchmarks/counts.py.
#include <valgrind/callgrind.h>

void start_counting(void) {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}

void dump_counts(const char* name) {
  CALLGRIND_DUMP_STATS_AT(name);
  CALLGRIND_ZERO_STATS;
}
