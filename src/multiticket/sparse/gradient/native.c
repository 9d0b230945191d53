/* multiticket_sampled: k entries of dy^T x, for sorted flat positions in the (rows, columns) product; x may be a product
   itself, of tensors that are multiplied as they are read.
   multiticket_columns, multiticket_column_sums: k columns of an activation, and their sums over tokens.
   multiticket_write: the k numbers of each of many tensors to their positions.
   multiticket_gather: the numbers of many tensors at their positions.
   multiticket_changed: which of many tensors no longer hold such numbers.
   multiticket_is_product: whether a tensor is still the product that it was made as.

   An entry is a dot product over tokens of a column of dy and a column of x, which lie across the memory. So a block of
   B tokens is transposed into scratch that stays in the cache, eight columns by sixteen tokens at a time, and the dot
   products read it along. The same number of threads gives the same bits.

   Built by native.py with any C compiler; OpenMP where there is one, the thread pool that torch itself uses. */

#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define UPPER_HALF(a) __builtin_shufflevector(a, a, 2, 3, 2, 3)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (int8v){__VA_ARGS__})
#define UPPER_HALF(a) __builtin_shuffle(a, (int4v){2, 3, 2, 3})
#endif

enum { B = 64, ROWS = 64 };

typedef float float4v __attribute__((vector_size(16)));
typedef float float8v __attribute__((vector_size(32)));
typedef float float16v __attribute__((vector_size(64)));
typedef int32_t int4v __attribute__((vector_size(16)));
typedef int32_t int8v __attribute__((vector_size(32)));

/* Eight numbers as fp32: bf16 is the upper half of an fp32. */
INLINE float8v load8(const void *from, int64_t at, int bf16) {
  float8v wide;
  if (!bf16) {
    memcpy(&wide, (const float *)from + at, sizeof wide);
    return wide;
  }
  uint16_t half[8];
  uint32_t bits[8];
  memcpy(half, (const uint16_t *)from + at, sizeof half);
  for (int i = 0; i < 8; i++) bits[i] = (uint32_t)half[i] << 16;
  memcpy(&wide, bits, sizeof wide);
  return wide;
}

INLINE float16v load16(const float *from) {
  float16v wide;
  memcpy(&wide, from, sizeof wide);
  return wide;
}

INLINE float load1(const void *from, int64_t at, int bf16) {
  if (!bf16) return ((const float *)from)[at];
  uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

/* An input (tokens, columns), or the factors it is made of: (x * times), or (x * by_token) * by_column, in fp32. */
typedef struct {
  const void *x;
  const float *times, *by_token, *by_column;
  int64_t stride;
  int bf16;
} Input;

enum { PLAIN, TIMES, SCALED };

INLINE float input1(const Input *in, int kind, int64_t token, int64_t column) {
  float x = load1(in->x, token * in->stride + column, in->bf16);
  if (kind == TIMES) x *= in->times[token * in->stride + column];
  if (kind == SCALED) x = x * in->by_token[token] * in->by_column[column];
  return x;
}

/* An 8 x 8 tile from rows `stride` apart to rows B apart, transposed. */
INLINE void transpose8(const Input *in, int kind, int64_t token, int64_t column, float *restrict to) {
  float8v a[8], b[8], c[8];
  int64_t at = token * in->stride + column;
  for (int i = 0; i < 8; i++) a[i] = load8(in->x, at + i * in->stride, in->bf16);
  if (kind == TIMES)
    for (int i = 0; i < 8; i++) a[i] *= load8(in->times, at + i * in->stride, 0);
  if (kind == SCALED) {
    float8v scale = load8(in->by_column, column, 0);
    for (int i = 0; i < 8; i++) a[i] = a[i] * in->by_token[token + i] * scale;
  }
  for (int i = 0; i < 8; i += 2) {
    b[i] = SHUFFLE(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] = SHUFFLE(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    c[i] = SHUFFLE(b[i], b[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    c[i + 1] = SHUFFLE(b[i], b[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    c[i + 2] = SHUFFLE(b[i + 1], b[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    c[i + 3] = SHUFFLE(b[i + 1], b[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; i++) {
    float8v low = SHUFFLE(c[i], c[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    float8v high = SHUFFLE(c[i], c[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    memcpy(to + i * B, &low, sizeof low);
    memcpy(to + (i + 4) * B, &high, sizeof high);
  }
}

/* Columns first ... last - 1 of n <= B tokens, each to B numbers in a row, zeros after the n. */
INLINE void transpose(const Input *in, int kind, int64_t token, int n, int64_t first, int64_t last,
                      float *restrict to) {
  int t = 0;
  for (; t + 16 <= n; t += 16) { /* sixteen tokens fill a cache line of the result */
    int64_t c = first;
    for (; c + 8 <= last; c += 8) {
      transpose8(in, kind, token + t, c, to + (c - first) * B + t);
      transpose8(in, kind, token + t + 8, c, to + (c - first) * B + t + 8);
    }
    for (; c < last; c++)
      for (int i = 0; i < 16; i++) to[(c - first) * B + t + i] = input1(in, kind, token + t + i, c);
  }
  for (; t < n; t++)
    for (int64_t c = first; c < last; c++) to[(c - first) * B + t] = input1(in, kind, token + t, c);
  if (n < B)
    for (int64_t c = first; c < last; c++) memset(to + (c - first) * B + n, 0, sizeof(float) * (B - n));
}

/* The cases apart, so that a compiler sees what each of them never does. */
EACH_CPU static void columns_of(const Input *given, int64_t token, int n, int64_t first, int64_t last, float *to) {
  Input in = *given;
  if (in.bf16) {
    in.bf16 = 1;
    transpose(&in, PLAIN, token, n, first, last, to);
    return;
  }
  in.bf16 = 0;
  if (in.times)
    transpose(&in, TIMES, token, n, first, last, to);
  else if (in.by_token)
    transpose(&in, SCALED, token, n, first, last, to);
  else
    transpose(&in, PLAIN, token, n, first, last, to);
}

/* ROWS numbers of one token, which the next transpose will read: each token's lie on a page of their own. */
INLINE void ask_for(const void *from, int64_t at, int bf16) {
  int64_t size = bf16 ? 2 : 4;
  for (int64_t byte = 0; byte < ROWS * size; byte += 64) __builtin_prefetch((const char *)from + at * size + byte);
}

/* The dot product of two runs of B numbers: sixteen sums side by side, then their sum by halves. */
INLINE float dot(const float *restrict a, const float *restrict b) {
  float16v sum = {0};
  for (int t = 0; t < B; t += 32) sum += load16(a + t) * load16(b + t) + load16(a + t + 16) * load16(b + t + 16);
  union {
    float16v all;
    float8v half[2];
  } sixteen = {sum};
  union {
    float8v all;
    float4v half[2];
  } eight = {sixteen.half[0] + sixteen.half[1]};
  float4v four = eight.half[0] + eight.half[1];
  four += UPPER_HALF(four);
  return four[0] + four[1];
}

EACH_CPU static void rows_of_product(const Input *dy, int64_t token, int n, int64_t first, int64_t last,
                                     int64_t columns, const float *restrict xt, const int32_t *restrict starts,
                                     const int32_t *restrict positions, float *restrict result) {
  float dyt[ROWS * B] __attribute__((aligned(64)));
  for (int64_t row = first; row < last; row += ROWS) {
    int64_t end = row + ROWS < last ? row + ROWS : last;
    if (starts[row] == starts[end]) continue;
    columns_of(dy, token, n, row, end, dyt);
    for (int64_t r = row; r < end; r++) {
      if (end < last && r - row < n) ask_for(dy->x, (token + r - row) * dy->stride + end, dy->bf16);
      for (int32_t i = starts[r]; i < starts[r + 1]; i++)
        result[i] += dot(dyt + (r - row) * B, xt + (positions[i] - r * columns) * B);
    }
  }
}

/* `sums` has room for the result (k), and k more for each further thread that takes tokens of its own, `splits` in all.
   `scratch` has room for columns * 64 floats for each thread. Strides are between tokens, in elements. x has factors if
   they are not null, and is fp32 then: `times` with its stride, or `by_token` (tokens) and `by_column` (columns).

   Threads divide the tokens, and wait for each other once; where so many sums would take too much memory, those with
   the same tokens divide the rows. */
void multiticket_sampled(const void *dy, int64_t dy_stride, const void *x, int64_t x_stride, const float *times,
                         const float *by_token, const float *by_column, int bf16, int64_t tokens, int64_t rows,
                         int64_t columns, const int32_t *starts, const int32_t *positions, float *sums, float *scratch,
                         int splits, int threads) {
  Input output_gradient = {dy, 0, 0, 0, dy_stride, bf16}, input = {x, times, by_token, by_column, x_stride, bf16};
  int64_t blocks = (tokens + B - 1) / B, parts = (rows + ROWS - 1) / ROWS, k = starts[rows];
#ifndef _OPENMP
  splits = threads = 1;
#else
#pragma omp parallel num_threads(threads)
#endif
  {
    int64_t me = 0, all = 1;
#ifdef _OPENMP
    me = omp_get_thread_num(), all = omp_get_num_threads();
#endif
    int64_t split = splits < all ? splits : all, sharing = all / split;
    int64_t mine = me % split, share = me / split;
    if (share < sharing) {
      float *result = sums + mine * k;
      int64_t first = parts * share / sharing * ROWS, last = parts * (share + 1) / sharing * ROWS;
      if (last > rows) last = rows;
      memset(result + starts[first], 0, sizeof(float) * (starts[last] - starts[first]));
      for (int64_t block = blocks * mine / split; block < blocks * (mine + 1) / split; block++) {
        int64_t token = block * B;
        int n = tokens - token < B ? (int)(tokens - token) : B;
        float *xt = scratch + me * columns * B;
        columns_of(&input, token, n, 0, columns, xt);
        rows_of_product(&output_gradient, token, n, first, last, columns, xt, starts, positions, result);
      }
    }
#ifdef _OPENMP
#pragma omp barrier
#endif
    for (int64_t other = 1; other < split; other++)
      for (int64_t i = k * me / all; i < k * (me + 1) / all; i++) sums[i] += sums[other * k + i];
  }
}

/* Columns `positions` of x, entries of 4 bytes or (bf16) 2, side by side to `to`: (tokens, k). */
void multiticket_columns(const void *x, int64_t stride, int bf16, int64_t tokens, const int32_t *positions, int64_t k,
                         void *to) {
  for (int64_t t = 0; t < tokens; t++)
    if (bf16)
      for (int64_t i = 0; i < k; i++) ((uint16_t *)to)[t * k + i] = ((const uint16_t *)x)[t * stride + positions[i]];
    else
      for (int64_t i = 0; i < k; i++) ((uint32_t *)to)[t * k + i] = ((const uint32_t *)x)[t * stride + positions[i]];
}

/* Sums over tokens of columns `positions` of dy, or of their product with `times` (tokens, k), if there is one. */
void multiticket_column_sums(const void *dy, int64_t stride, const void *times, int bf16, int64_t tokens,
                             const int32_t *positions, int64_t k, float *sums) {
  for (int64_t first = 0; first < k; first += ROWS) {
    int64_t n = k - first < ROWS ? k - first : ROWS;
    double sum[ROWS] = {0};
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t i = 0; i < n; i++) {
        float one = load1(dy, t * stride + positions[first + i], bf16);
        sum[i] += times ? one * load1(times, t * k + first + i, bf16) : one;
      }
    for (int64_t i = 0; i < n; i++) sums[first + i] = (float)sum[i];
  }
}

/* Of each of `weights` tensors its k numbers to sorted positions, entries of `size` bytes: 2, 4 or 8. `content` holds the
   numbers of one tensor after those of the one before.

   A sparse write is a page of its own, and waits for the page's address more than for its content: so lines are asked
   for before they are written, and all threads share each tensor. */
enum { AHEAD = 24 };

/* `LOOP` over numbers of 2, 4 or 8 bytes. */
#define OF_SIZE(size, LOOP)                                                                    \
  if (size == 2) {                                                                             \
    LOOP(uint16_t)                                                                             \
  } else if (size == 4) {                                                                      \
    LOOP(uint32_t)                                                                             \
  } else {                                                                                     \
    LOOP(uint64_t)                                                                             \
  }

/* `LOOP` for each weight `w`, on all threads: over its entries `first` to `last`, which go to the positions `at` and begin
   at `begin` among those of all weights. */
#define OF_EACH_WEIGHT(LOOP)                                                                   \
  ON_ALL_THREADS {                                                                             \
    int64_t begin = 0;                                                                         \
    for (int64_t w = 0; w < weights; w++) {                                                    \
      const int32_t *at = positions[w];                                                        \
      int64_t first = counts[w] * THREAD / THREADS, last = counts[w] * (THREAD + 1) / THREADS; \
      OF_SIZE(size, LOOP)                                                                      \
      begin += counts[w];                                                                      \
    }                                                                                          \
  }

#ifdef _OPENMP
#define ON_ALL_THREADS _Pragma("omp parallel num_threads(threads)")
#define THREAD omp_get_thread_num()
#define THREADS omp_get_num_threads()
#else
#define ON_ALL_THREADS (void)threads;
#define THREAD 0
#define THREADS 1
#endif

#define WRITE(type)                                                                            \
  for (int64_t i = first; i < last; i++) {                                                     \
    if (i + AHEAD < last) __builtin_prefetch((type *)dense[w] + at[i + AHEAD], 1);             \
    ((type *)dense[w])[at[i]] = ((const type *)content)[begin + i];                            \
  }

void multiticket_write(int64_t weights, void *const *dense, int size, const int32_t *const *positions,
                       const int64_t *counts, const void *content, int threads) {
  OF_EACH_WEIGHT(WRITE)
}

/* The other way: of each tensor the numbers at its positions, into its piece of `content`. */
#define GATHER(type)                                                                           \
  for (int64_t i = first; i < last; i++) {                                                     \
    if (i + AHEAD < last) __builtin_prefetch((const type *)dense[w] + at[i + AHEAD], 0);       \
    ((type *)content)[begin + i] = ((const type *)dense[w])[at[i]];                            \
  }

void multiticket_gather(int64_t weights, void *const *dense, int size, const int32_t *const *positions,
                        const int64_t *counts, void *content, int threads) {
  OF_EACH_WEIGHT(GATHER)
}

/* Whether each of `weights` tensors still holds its k entries of `content` at its positions, byte for byte: `changed[w]`
   becomes 1 where one does not. */
#define COMPARE(type)                                                                          \
  int differs = 0;                                                                             \
  for (int64_t i = first; i < last; i++) {                                                     \
    if (i + AHEAD < last) __builtin_prefetch((const type *)dense[w] + at[i + AHEAD], 0);       \
    differs |= ((const type *)dense[w])[at[i]] != ((const type *)content[w])[i];               \
  }                                                                                            \
  if (differs) changed[w] = 1;

void multiticket_changed(int64_t weights, void *const *dense, int size, const int32_t *const *positions,
                         const int64_t *counts, void *const *content, uint8_t *changed, int threads) {
  OF_EACH_WEIGHT(COMPARE)
}

/* A product of bf16 numbers, as torch rounds it: to the nearest, ties to even. NaN is no number's equal. */
INLINE float bf16_product(uint16_t a, uint16_t b) {
  union { uint32_t bits; float number; } x = {(uint32_t)a << 16}, y = {(uint32_t)b << 16}, z;
  z.number = x.number * y.number;
  z.bits = (z.bits + 0x7fff + ((z.bits >> 16) & 1)) & 0xffff0000u;
  return z.number;
}

/* Whether x (rows, columns) is a * times, or (a * by_token) * by_column, all of them in one piece. */
EACH_CPU int multiticket_is_product(const void *x, const void *a, const void *times, const float *by_token,
                                    const float *by_column, int bf16, int64_t rows, int64_t columns, int threads) {
  int wrong = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) reduction(| : wrong)
#else
  (void)threads;
#endif
  for (int64_t row = 0; row < rows; row++) {
    int64_t at = row * columns;
    int bad = 0;
    if (bf16) {
      const uint16_t *p = (const uint16_t *)a + at, *q = (const uint16_t *)times + at, *out = (const uint16_t *)x + at;
      for (int64_t i = 0; i < columns; i++) {
        union { uint32_t bits; float number; } whole = {(uint32_t)out[i] << 16};
        bad |= bf16_product(p[i], q[i]) != whole.number;
      }
    } else if (times) {
      const float *p = (const float *)a + at, *q = (const float *)times + at, *out = (const float *)x + at;
      for (int64_t i = 0; i < columns; i++) bad |= p[i] * q[i] != out[i];
    } else {
      const float *p = (const float *)a + at, *out = (const float *)x + at, by = by_token[row];
      for (int64_t i = 0; i < columns; i++) bad |= p[i] * by * by_column[i] != out[i];
    }
    wrong |= bad;
  }
  return !wrong;
}
