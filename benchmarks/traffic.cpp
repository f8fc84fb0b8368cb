// The floor of a step, as this machine's memory gives it: moves what a step moves, by the threads, chunks and portions
// of the fused kernels, and computes next to nothing. traffic.py compiles and calls it.

#include <algorithm>
#include <vector>

#include "cpu_threads.h"

namespace {

constexpr int64_t CHUNK = 32 * 1024;
enum Phase { BOTH, FIRST, LAST };  // AdamW and SGD have both in one sweep

struct Sweep {
  Phase phase;
  const int64_t *addresses;  // [layers, 4]: weights, gradient, first and second moment, float32; 0 for no second one
  const int64_t *elements;   // [layers]
  const std::vector<int64_t> &chunks;  // [layers + 1]: how many there are before each layer
  int64_t first;                       // the first chunk
};

// Gradients are zeros, so nothing changes; the compiler does not know.
void move(Phase phase, float *__restrict__ x, const float *__restrict__ g, float *__restrict__ m,
          float *__restrict__ v, int64_t count) {
  const float zero = g[0];
#define EACH(...) for (int64_t i = 0; i < count; ++i) { __VA_ARGS__; }
  if (phase == BOTH && v) EACH(m[i] += g[i]; v[i] += g[i]; x[i] += m[i] * zero + v[i] * zero)
  if (phase == BOTH && !v) EACH(m[i] += g[i]; x[i] += m[i] * zero)
  if (phase == FIRST && v) EACH(m[i] += g[i] + x[i] * zero; v[i] += g[i])
  if (phase == FIRST && !v) EACH(m[i] += g[i] + x[i] * zero)
  if (phase == LAST && v) EACH(x[i] += m[i] * zero + v[i] * zero)
  if (phase == LAST && !v) EACH(x[i] += m[i] * zero)
#undef EACH
}

void move_chunk(void *context, int64_t index) {
  const Sweep &sweep = *static_cast<const Sweep *>(context);
  const int64_t chunk = sweep.first + index;
  const int64_t layer = std::upper_bound(sweep.chunks.begin(), sweep.chunks.end(), chunk) - sweep.chunks.begin() - 1;
  const int64_t begin = (chunk - sweep.chunks[layer]) * CHUNK, count = std::min(CHUNK, sweep.elements[layer] - begin);
  float *at[4];
  for (int i = 0; i < 4; ++i) {
    const int64_t address = sweep.addresses[4 * layer + i];
    at[i] = address ? reinterpret_cast<float *>(address) + begin : nullptr;
  }
  move(sweep.phase, at[0], at[1], at[2], at[3], count);
}

}  // namespace

// `at_once`: how many elements to take through both phases at once; 0 for all in one sweep.
extern "C" void traffic(int64_t layers, const int64_t *addresses, const int64_t *elements, int64_t at_once,
                        int64_t threads, OpenMP openmp) {
  std::vector<int64_t> chunks{0};
  for (int64_t i = 0; i < layers; ++i) chunks.push_back(chunks.back() + (elements[i] + CHUNK - 1) / CHUNK);
  const auto sweep = [&](Phase phase, int64_t first, int64_t last) {
    Sweep given{phase, addresses, elements, chunks, chunks[first]};
    share(chunks[last] - chunks[first], threads, openmp, phase == LAST, move_chunk, &given);
  };
  if (at_once == 0) return sweep(BOTH, 0, layers);
  for (int64_t first = 0, last; first < layers; first = last) {
    int64_t together = 0;
    for (last = first; last < layers; together += elements[last++])
      if (last > first && together + elements[last] > at_once) break;
    sweep(FIRST, first, last);
    sweep(LAST, first, last);
  }
}
