// The sweeps over memory and the rules on eight elements at once. cpu.cpp includes this file once for each kind of
// vectors, in a namespace of its own; hence no guard, and no function here is anybody else's.

typedef float Floats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));
template <class T> struct EightOf;
template <> struct EightOf<float> { using type = Floats; };
template <> struct EightOf<double> { using type = Doubles; };

template <class T> INLINE typename EightOf<T>::type load(const T *from) {
  typename EightOf<T>::type a;
  std::memcpy(&a, from, sizeof(a));
  return a;
}
template <class T> INLINE void store(T *to, typename EightOf<T>::type a) { std::memcpy(to, &a, sizeof(a)); }

INLINE Doubles doubles(Doubles a) { return a; }
INLINE Doubles doubles(Floats a) {
#if defined(WITH_AVX512)
  return Doubles(_mm512_cvtps_pd(__m256(a)));
#else
  return __builtin_convertvector(a, Doubles);
#endif
}

// The compiler makes one instruction of these; there is no other word for a root of vectors that all processors share.
INLINE Floats root(Floats a) {
  for (int k = 0; k < 8; ++k) a[k] = __builtin_sqrtf(a[k]);
  return a;
}
INLINE Doubles root(Doubles a) {
  for (int k = 0; k < 8; ++k) a[k] = __builtin_sqrt(a[k]);
  return a;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

INLINE uint32_t bits_of(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  return bits;
}
INLINE float of_bits(uint32_t bits) {
  float a;
  std::memcpy(&a, &bits, 4);
  return a;
}

INLINE float widened(float a) { return a; }
INLINE double widened(double a) { return a; }
INLINE float widened(Bfloat16 a) { return of_bits(uint32_t(a.bits) << 16); }
INLINE float widened(Float16 a) {
  // Exponent and fraction in float32's places; the product corrects the bias, and is exact for subnormals too.
  const uint32_t magnitude = uint32_t(a.bits & 0x7fff) << 13, sign = uint32_t(a.bits & 0x8000) << 16;
  const uint32_t finite = bits_of(of_bits(magnitude) * of_bits(0x77800000));  // 2^112
  const uint32_t other = magnitude | 0x7f800000;                              // infinite, or not a number
  return of_bits(sign | (magnitude < 0x0f800000 ? finite : other));
}

// To nearest, ties to even, as PyTorch rounds.
INLINE void round_to(float a, Bfloat16 &to) {
  const uint32_t bits = bits_of(a), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = uint16_t(a != a ? 0x7fc0 : rounded);
}
INLINE void round_to(float a, Float16 &to) {
  const uint32_t bits = bits_of(a) & 0x7fffffff, sign = (bits_of(a) >> 16) & 0x8000;
  // From 2^-14 on: the bias corrected in the exponent, the fraction rounded; a carry runs into the exponent.
  const uint32_t normal = (bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13;
  // Below: beside 0.5 the last bit of a float32 is worth 2^-24, the least Float16.
  const uint32_t subnormal = bits_of(of_bits(bits) + 0.5f) - 0x3f000000;
  const uint32_t finite = bits < 0x38800000 ? subnormal : normal;
  const uint32_t other = bits > 0x7f800000 ? 0x7e00 : 0x7c00;
  to.bits = uint16_t(sign | (bits >= 0x47800000 ? other : finite));
}
INLINE void round_to(double a, Bfloat16 &to) { round_to(float(a), to); }
INLINE void round_to(double a, Float16 &to) { round_to(float(a), to); }
template <class T> INLINE void round_to(T a, float &to) { to = float(a); }
template <class T> INLINE void round_to(T a, double &to) { to = double(a); }

// Calls `visit(offset, done, count, step)` for each part of a run that lies along the innermost dimension.
template <class Visit> INLINE void along_strides(const Run &run, const int64_t *strides, Visit visit) {
  const int64_t inner = run.ndim - 1, size = run.sizes[inner], step = strides[inner];
  for (int64_t done = 0; done < run.count;) {
    int64_t outer = (run.first + done) / size;
    const int64_t column = (run.first + done) % size, here = std::min(run.count - done, size - column);
    int64_t offset = column * step;
    for (int64_t d = inner - 1; d >= 0; --d) {
      offset += outer % run.sizes[d] * strides[d];
      outer /= run.sizes[d];
    }
    visit(offset, done, here, step);
    done += here;
  }
}

template <class T, class S> void read_as(const Array &array, const Run &run, T *to) {
  const S *from = reinterpret_cast<const S *>(array.address);
  if (!array.strides) {
    from += run.first;
    ELEMENTWISE for (int64_t i = 0; i < run.count; ++i) to[i] = T(widened(from[i]));
    return;
  }
  along_strides(run, array.strides, [&](int64_t offset, int64_t done, int64_t count, int64_t step) {
    for (int64_t i = 0; i < count; ++i) to[done + i] = T(widened(from[offset + i * step]));
  });
}

template <class T, class S> void write_as(const Array &array, const Run &run, const T *from) {
  S *to = reinterpret_cast<S *>(array.address);
  if (!array.strides) {
    to += run.first;
    ELEMENTWISE for (int64_t i = 0; i < run.count; ++i) round_to(from[i], to[i]);
    return;
  }
  along_strides(run, array.strides, [&](int64_t offset, int64_t done, int64_t count, int64_t step) {
    for (int64_t i = 0; i < count; ++i) round_to(from[done + i], to[offset + i * step]);
  });
}

// A block of an array in the dtype to compute in: the memory itself where that is dense, of that dtype, and long
// enough; else a copy, with zeros up to the end of its last row.
template <class T> T *read(const Array &array, const Run &run, T *copy) {
  if (run.count % ROW == 0 && array.type == type_of<T>() && !array.strides)
    return reinterpret_cast<T *>(array.address) + run.first;
  switch (array.type) {
    case FLOAT32: read_as<T, float>(array, run, copy); break;
    case FLOAT64: read_as<T, double>(array, run, copy); break;
    case BFLOAT16: read_as<T, Bfloat16>(array, run, copy); break;
    case FLOAT16: read_as<T, Float16>(array, run, copy); break;
  }
  if (run.count % ROW) std::memset(copy + run.count, 0, size_t(ROW - run.count % ROW) * sizeof(T));
  return copy;
}

// Puts elements back that `read` has handed out, unless they are the memory itself.
template <class T> void write(const Array &array, const Run &run, const T *from) {
  if (from == reinterpret_cast<T *>(array.address) + run.first) return;
  switch (array.type) {
    case FLOAT32: write_as<T, float>(array, run, from); break;
    case FLOAT64: write_as<T, double>(array, run, from); break;
    case BFLOAT16: write_as<T, Bfloat16>(array, run, from); break;
    case FLOAT16: write_as<T, Float16>(array, run, from); break;
  }
}

// ---- the rules ------------------------------------------------------------------------------------------------------

// What a rule needs of a layer, in the dtype to compute in.
template <class T> struct Numbers {
  T beta1, rest1, beta2, eps, weight_decay, rate;
  T scale, a1, b1, a2, b2, length1, length2;
  T scaled_rest1, scaled_root_rest2, eps_over_root_a2, a1_over_root_a2, one_over_root_a2;

  Numbers(const largebatch_work &s, const double *own)
      : beta1(T(s.beta1)), rest1(T(1 - s.beta1)), beta2(T(s.beta2)), eps(T(s.eps)),
        weight_decay(T(s.weight_decay)), rate(T(s.rate)), scale(T(own[0])), a1(T(own[1])), b1(T(own[2])),
        a2(T(own[3])), b2(T(own[4])), length1(T(own[5])), length2(T(own[6])),
        scaled_rest1(T((1 - s.beta1) * own[0])), scaled_root_rest2(T(std::sqrt(1 - s.beta2) * own[0])),
        eps_over_root_a2(T(s.eps / std::sqrt(own[3]))), a1_over_root_a2(T(own[1] / std::sqrt(own[3]))),
        one_over_root_a2(T(1 / std::sqrt(own[3]))) {}
};

// Eight elements of each array.
template <class V> struct Eight {
  V x, g, m, v;
};

// A rule says which arrays it reads and writes, moves eight elements, and leaves the directions that are measured.
template <int32_t R, int32_t W, int32_t COLUMNS_> struct Sweeps {
  static constexpr int32_t READS = R, WRITES = W, COLUMNS = COLUMNS_;
};

// mhat = a1 * m + b1 * g and vhat = a2 * v + b2 * g * g; b1 and b2 are 0 without a look-ahead, a2 is positive then, and
//     a1 * m / (sqrt(a2 * v) + eps) = (a1 / sqrt(a2)) * m / (sqrt(v) + eps / sqrt(a2)),
// a product less: while a root or a quotient is being made, one unit has all products to do. It fails only where
// eps / sqrt(a2) underflows.
template <bool AHEAD, class V, class N> INLINE V numerator(const Eight<V> &a, const N &c) {
  return AHEAD ? c.a1 * a.m + c.b1 * a.g : c.a1_over_root_a2 * a.m;
}
template <bool AHEAD, class V, class N> INLINE V denominator(const Eight<V> &a, const N &c) {
  return AHEAD ? root(c.a2 * a.v + c.b2 * (a.g * a.g)) + c.eps : root(a.v) + c.eps_over_root_a2;
}
// 1 / (sqrt(vhat) + eps) over 1 / denominator.
template <bool AHEAD, class N> INLINE auto numerator_of_one(const N &c) {
  return AHEAD ? decltype(c.a2)(1) : c.one_over_root_a2;
}
// From gradients as they are in memory: their scale is in the weights, of which that of the square is a root.
template <class V, class N> INLINE void update_moments(Eight<V> &a, const N &c) {
  const V root_share = c.scaled_root_rest2 * a.g;
  a.m = c.beta1 * a.m + c.scaled_rest1 * a.g;
  a.v = c.beta2 * a.v + root_share * root_share;
}

struct Squares : Sweeps<G, 0, 1> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *u) { u[0] = c.scale * a.g; }
};

template <bool AHEAD> struct LambNorms : Sweeps<X | G | M | V_, M | V_, 2> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *u) {
    update_moments(a, c);
    if (AHEAD) a.g = c.scale * a.g;
    u[0] = numerator<AHEAD>(a, c) / denominator<AHEAD>(a, c) + c.weight_decay * a.x;
  }
};
template <bool AHEAD> struct LambApply : Sweeps<X | M | V_ | (AHEAD ? G : 0), X, 0> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *) {
    if (AHEAD) a.g = c.scale * a.g;
    a.x -= c.length1 * (numerator<AHEAD>(a, c) / denominator<AHEAD>(a, c) + c.weight_decay * a.x);
  }
};

template <bool AHEAD> struct LansNorms : Sweeps<X | G | M | V_, M | V_, 3> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *u) {
    update_moments(a, c);
    a.g = c.scale * a.g;
    const V d = denominator<AHEAD>(a, c), decay = c.weight_decay * a.x;
    u[0] = numerator<AHEAD>(a, c) / d + decay;
    u[1] = numerator_of_one<AHEAD>(c) * a.g / d + decay;
  }
};
template <bool AHEAD> struct LansApply : Sweeps<X | G | M | V_, X, 0> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *) {
    a.g = c.scale * a.g;
    const V d = denominator<AHEAD>(a, c), decay = c.weight_decay * a.x;
    a.x -= c.length1 * (numerator<AHEAD>(a, c) / d + decay) +
           c.length2 * (numerator_of_one<AHEAD>(c) * a.g / d + decay);
  }
};

// LARS, algorithm 1.
template <bool BUFFER, bool AHEAD> struct LarsNorms : Sweeps<X | G | (BUFFER ? M : 0), BUFFER ? M : 0, 2> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *u) {
    const V d = c.scale * a.g + c.weight_decay * a.x;
    if (BUFFER) a.m = c.beta1 * a.m + c.rest1 * d;
    u[0] = !BUFFER ? d : AHEAD ? c.beta1 * a.m + c.rest1 * d : a.m;
  }
};
template <bool BUFFER, bool AHEAD> struct LarsApply : Sweeps<X | (BUFFER ? M : 0) | (AHEAD || !BUFFER ? G : 0), X, 0> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *) {
    const V d = c.scale * a.g + c.weight_decay * a.x;
    a.x -= c.length1 * (!BUFFER ? d : AHEAD ? c.beta1 * a.m + c.rest1 * d : a.m);
  }
};

// LARS of 2017.
struct Lars2017Norms : Sweeps<X | G, 0, 2> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *u) { u[0] = c.scale * a.g; }
};
template <bool BUFFER, bool AHEAD>
struct Lars2017Apply : Sweeps<X | G | (BUFFER ? M : 0), X | (BUFFER ? M : 0), 0> {
  template <class V, class N> static INLINE void on(Eight<V> &a, const N &c, V *) {
    const V newest = c.length1 * (c.scale * a.g + c.weight_decay * a.x);
    if (BUFFER) a.m = c.beta1 * a.m + newest;
    a.x -= c.rate * (!BUFFER ? newest : AHEAD ? c.beta1 * a.m + newest : a.m);
  }
};

// ---- sums -----------------------------------------------------------------------------------------------------------

template <bool TWO, class V> INLINE void add(Doubles &sum, const V &one, int32_t norm) {
  const Doubles a = doubles(one);
  if (TWO) {
    sum += a * a;
    return;
  }
  const Doubles size = a < 0 ? -a : a;
  if (norm == ONE) sum += size;
  else sum = (size > sum) | (size != size) ? size : sum;  // what is not a number stays
}

// ---- blocks and chunks ----------------------------------------------------------------------------------------------

template <class T, class Rule, bool TWO>
INLINE void sweep_block(const largebatch_work &s, const Array *arrays, const Run &run, const Numbers<T> &c,
                        T (*copies)[BLOCK], Doubles (*chunk_sums)[2]) {
  using V = typename EightOf<T>::type;
  T *at[4];
  for (int32_t i = 0; i < 4; ++i) at[i] = Rule::READS >> i & 1 ? read<T>(arrays[i], run, copies[i]) : nullptr;
  Doubles sums[3][2];  // in registers
  for (int i = 0; i < Rule::COLUMNS; ++i) sums[i][0] = chunk_sums[i][0], sums[i][1] = chunk_sums[i][1];
  for (int64_t row = 0; row < run.count; row += ROW) {
    UNROLLED for (int64_t half = 0; half < 2; ++half) {
      const int64_t i = row + 8 * half;
      Eight<V> a = {};
      if (Rule::READS & X) a.x = load(at[0] + i);
      if (Rule::READS & G) a.g = load(at[1] + i);
      if (Rule::READS & M) a.m = load(at[2] + i);
      if (Rule::READS & V_) a.v = load(at[3] + i);
      V u[2];
      const V x = a.x;
      Rule::on(a, c, u);
      if (Rule::WRITES & X) store(at[0] + i, a.x);
      if (Rule::WRITES & M) store(at[2] + i, a.m);
      if (Rule::WRITES & V_) store(at[3] + i, a.v);
      if (Rule::COLUMNS == 1) add<TWO>(sums[0][half], u[0], s.norm);
      if (Rule::COLUMNS > 1) add<TWO>(sums[0][half], x, s.norm), add<TWO>(sums[1][half], u[0], s.norm);
      if (Rule::COLUMNS > 2) add<TWO>(sums[2][half], u[1], s.norm);
    }
  }
  for (int i = 0; i < Rule::COLUMNS; ++i) chunk_sums[i][0] = sums[i][0], chunk_sums[i][1] = sums[i][1];
  for (int32_t i = 0; i < 4; ++i)
    if (Rule::WRITES >> i & 1) write<T>(arrays[i], run, at[i]);
  if ((Rule::WRITES & X) && arrays[4].address) write<T>(arrays[4], run, at[0]);
}

template <class T, class Rule, bool TWO> void sweep_chunk(const Job &job, int64_t chunk) {
  const largebatch_work &s = job.work;
  const int64_t layer = std::upper_bound(job.chunks + job.first, job.chunks + job.last + 1, chunk) - job.chunks - 1;
  const int64_t elements = s.elements[layer], length = chunk_elements(elements);
  const int64_t *geometry = s.geometries[layer] < 0 ? nullptr : s.strides + s.geometries[layer];
  Run run{0, 0, geometry ? geometry[0] : 0, geometry ? geometry + 1 : nullptr};
  Array arrays[ARRAYS];
  for (int64_t i = 0; i < ARRAYS; ++i)
    arrays[i] = {reinterpret_cast<char *>(s.addresses[layer * ARRAYS + i]), Type(s.types[i]),
                 geometry ? geometry + 1 + (1 + i) * run.ndim : nullptr};
  const Numbers<T> numbers(s, s.numbers + layer * NUMBERS);
  alignas(64) T copies[4][BLOCK];
  Doubles sums[3][2] = {};
  const int64_t begin = (chunk - job.chunks[layer]) * length, end = std::min(begin + length, elements);
  for (run.first = begin; run.first < end; run.first += BLOCK) {
    run.count = std::min(BLOCK, end - run.first);
    sweep_block<T, Rule, TWO>(s, arrays, run, numbers, copies, sums);
  }
  for (int32_t i = 0; i < Rule::COLUMNS; ++i) {
    double total = 0;
    for (int lane = 0; lane < 16; ++lane) total = joined(s.norm, total, sums[i][lane / 8][lane % 8]);
    job.partial[chunk * Rule::COLUMNS + i] = total;
  }
}

template <class T, class Rule> void sweep_measured(const Job &job, int64_t chunk) {
  if (Rule::COLUMNS == 0 || job.work.norm == TWO) sweep_chunk<T, Rule, true>(job, chunk);
  else sweep_chunk<T, Rule, false>(job, chunk);
}

template <class T> void sweep_rule(const Job &job, int64_t chunk) {
  const bool ahead = job.work.look_ahead, buffer = job.work.momentum;
  switch (job.sweep) {
#define WITH(RULE, ...) return sweep_measured<T, RULE<__VA_ARGS__>>(job, chunk)
    case SQUARES: return sweep_measured<T, Squares>(job, chunk);
    case LAMB_NORMS: if (ahead) WITH(LambNorms, true); WITH(LambNorms, false);
    case LAMB_APPLY: if (ahead) WITH(LambApply, true); WITH(LambApply, false);
    case LANS_NORMS: if (ahead) WITH(LansNorms, true); WITH(LansNorms, false);
    case LANS_APPLY: if (ahead) WITH(LansApply, true); WITH(LansApply, false);
    case LARS_NORMS:
      if (!buffer) WITH(LarsNorms, false, false);
      if (ahead) WITH(LarsNorms, true, true);
      WITH(LarsNorms, true, false);
    case LARS_APPLY:
      if (!buffer) WITH(LarsApply, false, false);
      if (ahead) WITH(LarsApply, true, true);
      WITH(LarsApply, true, false);
    case LARS_2017_NORMS: return sweep_measured<T, Lars2017Norms>(job, chunk);
    case LARS_2017_APPLY:
      if (!buffer) WITH(Lars2017Apply, false, false);
      if (ahead) WITH(Lars2017Apply, true, true);
      WITH(Lars2017Apply, true, false);
#undef WITH
  }
}

void sweep_piece(void *context, int64_t index) {
  const Job &job = *static_cast<const Job *>(context);
  const int64_t chunk = job.chunks[job.first] + index;
  if (job.work.compute == FLOAT32) sweep_rule<float>(job, chunk);
  else sweep_rule<double>(job, chunk);
}
