// Fused kernels of LAMB, LANS and LARS for CPUs: each phase of a step is one sweep over the memory of the layers.
//
// The rules stand plainly in lamb.py, lans.py and lars.py, in the letters used here; contract.py says what the phases
// are, cpu.py calls them. No part of PyTorch or Python is seen: the tables of addresses are all that comes in.
//
// A layer is cut into chunks, whose number depends on its size alone. A chunk leaves its sums in float64, and those of
// the chunks are added in their order: so the result has the same bits for any number of threads. Sums are kept in
// sixteen lanes whatever the vectors: so AVX2 and AVX-512, which both contract a product with a sum, give the same bits.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "cpu_threads.h"

#define INLINE __attribute__((always_inline)) inline
#define EXPORTED __attribute__((visibility("default")))
#if defined(__clang__)
#define ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define ELEMENTWISE _Pragma("GCC ivdep")
#define UNROLLED _Pragma("GCC unroll 2")
#endif

namespace {

// Phase 0 for any rule; phases 1 and 3 of each. The number of a phase 3 is one more than that of its phase 1.
enum Sweep : int32_t {
  SQUARES, LAMB_NORMS, LAMB_APPLY, LANS_NORMS, LANS_APPLY, LARS_NORMS, LARS_APPLY, LARS_2017_NORMS, LARS_2017_APPLY
};
enum Norm : int32_t { INF = 0, ONE = 1, TWO = 2 };
enum Type : int32_t { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3 };
// The arrays of a layer: weights, gradient, first moment or momentum, second moment; and the rounded weights.
enum ArrayBit : int32_t { X = 1, G = 2, M = 4, V_ = 8 };
constexpr int64_t ARRAYS = 5;

// Numbers of a layer: scale of the gradient; a1, b1, a2, b2 of the moments; lengths along two directions.
constexpr int64_t NUMBERS = 7;

}  // namespace

extern "C" {

// What is to be done: one sweep, or a whole step. cpu.py has the same structure.
struct largebatch_work {
  int32_t sweep;              // a phase 1 where whole_step
  int32_t whole_step, adapt, norm, look_ahead, momentum, compute, threads, vectors;
  int32_t types[ARRAYS];
  OpenMP openmp;              // whose threads to use; nulls for our own
  int64_t layers;
  const int64_t *addresses;   // [layers, ARRAYS]; 0 where there is no such array
  const int64_t *elements;    // [layers]
  const int64_t *geometries;  // [layers]: where in `strides` the layer's stand; -1 where its arrays are dense
  const int64_t *strides;     // of a layer: ndim, its sizes [ndim], its strides [ARRAYS, ndim] in elements
  double *numbers;            // [layers, NUMBERS]
  double *sums;               // [layers, columns]: 1 for squares, else the weights and each direction
  double beta1, beta2, eps, weight_decay, rate;
  // Of a whole step: how many elements to take through both phases at once, and what makes the ratios.
  int64_t elements_at_once;
  double lr, coefficient, of_weights, ratio_eps, phi_low, phi_high, ratio_low, ratio_high;
};
}

namespace {

// Loops are over rows of two vectors. A block is what is converted at once; its copies stay in the first-level cache.
constexpr int64_t ROW = 16, BLOCK = 1024;
// A chunk is what a thread takes at once: in shorter ones the processors' own prefetching has less to go by, and asking
// for memory ahead of time brings less than it costs. More chunks a layer would take more memory for their sums.
constexpr int64_t CHUNK = 32 * BLOCK, MOST_CHUNKS = 4096;

struct Bfloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

template <class T> constexpr Type type_of() { return sizeof(T) == 4 ? FLOAT32 : FLOAT64; }

// The memory of one array of a layer. A dense one has no strides: its elements follow each other.
struct Array {
  char *address;
  Type type;
  const int64_t *strides;  // [ndim] in elements, or null
};

// A run of elements of a layer, counted in the order that all its arrays share.
struct Run {
  int64_t first, count;
  int64_t ndim;          // 0 where the arrays are dense
  const int64_t *sizes;  // [ndim], outermost first
};

// A sweep over the layers from `first` to before `last`.
struct Job {
  const largebatch_work &work;
  int32_t sweep;
  const int64_t *chunks;  // [layers + 1]: how many chunks there are before each layer
  double *partial;        // [chunks, columns]
  int64_t first, last;
};

int64_t chunk_elements(int64_t elements) {
  return CHUNK * std::max<int64_t>((elements + CHUNK * MOST_CHUNKS - 1) / (CHUNK * MOST_CHUNKS), 1);
}

double joined(int32_t norm, double one, double other) {
  if (norm != INF) return one + other;
  return other > one || other != other ? other : one;
}

// ---- the sweeps, for each kind of vectors --------------------------------------------------------------------------

namespace baseline {  // SSE2, or NEON
#include "cpu_sweeps.h"
}
#if defined(__x86_64__)
#define AVX2 "avx2,fma,f16c"
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(AVX2))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#include "cpu_sweeps.h"
}
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target(AVX512))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define WITH_AVX512
namespace avx512 {
#include "cpu_sweeps.h"
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

int32_t widest() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

}  // namespace

extern "C" {

// Which vectors this processor has: 2 AVX-512, 1 AVX2, 0 what all processors of its kind have.
EXPORTED int32_t largebatch_vectors() {
  static const int32_t found = widest();
  return found;
}
}

namespace {

Work piece_for(int32_t vectors) {
#if defined(__x86_64__)
  if (vectors == 2) return avx512::sweep_piece;
  if (vectors == 1) return avx2::sweep_piece;
#endif
  return baseline::sweep_piece;
}

int64_t columns_of(int32_t sweep) {
  switch (sweep) {
    case SQUARES: return 1;
    case LAMB_NORMS: case LARS_NORMS: case LARS_2017_NORMS: return 2;
    case LANS_NORMS: return 3;
    default: return 0;
  }
}

// Makes a sweep over some of the layers, and adds up the sums of their chunks.
void sweep_layers(const largebatch_work &s, int32_t sweep, const int64_t *chunks, double *partial, int64_t first,
                  int64_t last) {
  const int64_t columns = columns_of(sweep);
  // Phase 3 goes backwards: what phase 1 has touched last is still in the cache.
  Job job{s, sweep, chunks, partial, first, last};
  share(chunks[last] - chunks[first], s.threads, s.openmp, columns == 0,
        piece_for(std::min(s.vectors, largebatch_vectors())), &job);
  for (int64_t layer = first; columns && layer < last; ++layer)
    for (int64_t column = 0; column < columns; ++column) {
      double total = 0;
      for (int64_t chunk = chunks[layer]; chunk < chunks[layer + 1]; ++chunk)
        total = joined(s.norm, total, partial[chunk * columns + column]);
      s.sums[layer * columns + column] = total;
    }
}

double clamped(double a, double low, double high) { return a < low ? low : a > high ? high : a; }

// What trust_ratio.py and `Layers.lengths` say, in the same order; the tests compare them, and that the ratios agree to
// the last bits (PyTorch's own root is one off at times). They make the ratios that are recorded.
void enter_lengths(const largebatch_work &s, int64_t layer, int64_t columns) {
  const auto norm = [&](int64_t column) {
    const double sum = s.sums[layer * columns + column];
    return s.norm == TWO ? std::sqrt(sum) : sum;
  };
  for (int64_t direction = 0; direction + 1 < columns; ++direction) {
    double ratio = 1;
    if (s.adapt) {
      const double x = norm(0), u = norm(1 + direction);
      if (x != 0 && u != 0) {
        ratio = s.coefficient * clamped(x, s.phi_low, s.phi_high) / (u + s.of_weights * x + s.ratio_eps);
        ratio = clamped(ratio, s.ratio_low, s.ratio_high);
      }
    }
    if (columns == 3) ratio *= direction == 0 ? s.beta1 : 1 - s.beta1;  // LANS goes along both of its directions
    const double most = s.compute == FLOAT32 ? std::numeric_limits<float>::max() : std::numeric_limits<double>::max();
    s.numbers[layer * NUMBERS + 5 + direction] = clamped(s.lr * ratio, -most, most);
  }
}

}  // namespace

extern "C" {

// To be raised whenever the structure above changes its meaning.
EXPORTED int32_t largebatch_version() { return 1; }

// Does the work. Returns 0, or 1 where memory for the sums of chunks could not be had; nothing has been changed then.
EXPORTED int32_t largebatch_run(const largebatch_work *work) {
  const largebatch_work &s = *work;
  const int64_t columns = columns_of(s.sweep);
  const std::unique_ptr<int64_t[]> chunks(new (std::nothrow) int64_t[size_t(s.layers) + 1]);
  if (!chunks) return 1;
  chunks[0] = 0;
  for (int64_t i = 0; i < s.layers; ++i) {
    const int64_t length = chunk_elements(s.elements[i]);
    chunks[i + 1] = chunks[i] + (s.elements[i] + length - 1) / length;
  }
  const std::unique_ptr<double[]> partial(new (std::nothrow) double[size_t(chunks[s.layers] * columns)]);
  if (!partial) return 1;
  if (!s.whole_step) {
    sweep_layers(s, s.sweep, chunks.get(), partial.get(), 0, s.layers);
    return 0;
  }
  for (int64_t first = 0, last; first < s.layers; first = last) {
    int64_t elements = 0;
    for (last = first; last < s.layers; elements += s.elements[last++])
      if (last > first && elements + s.elements[last] > s.elements_at_once) break;
    sweep_layers(s, s.sweep, chunks.get(), partial.get(), first, last);
    for (int64_t layer = first; layer < last; ++layer) enter_lengths(s, layer, columns);
    sweep_layers(s, s.sweep + 1, chunks.get(), partial.get(), first, last);
  }
  return 0;
}
}
