// SETR_FAST_VARIANTS before a function compiles it for AVX-512, AVX2 and the portable baseline; the loader picks one.
// Where contraction to FMA is off (CMakeLists.txt says for which files) all variants give the same bits: they differ in
// vector width only.
#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define SETR_FAST_VARIANTS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define SETR_FAST_VARIANT_NAMES "avx512 avx2 default"
#else
#define SETR_FAST_VARIANTS
#define SETR_FAST_VARIANT_NAMES "default"
#endif
