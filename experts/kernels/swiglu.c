/* Grouped SwiGLU over expert slots for small and middling numbers of rows. Knows no layers, ranks or Python.
 *
 * One source, compiled per instruction set: dot products of bf16 rows go through VDPBF16PS where the target has it,
 * else through float32 (a bf16 is the upper half of a float32); vector width follows the target. Every weight is read
 * once per call: a few rows of a matrix are kept in cache while all rows of x that need them pass by.
 *
 * Sums are in float32, and their order depends neither on the number of threads nor on how work was divided.
 * Letters: N rows of x, K slots per row, P pairs (row, slot), H hidden, I width. Weights [S, 2I, H] and [S, H, I].
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))
#define BLOCK 32 /* weight rows per piece of work */
#define UNROLL _Pragma("GCC unroll 16")

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint16_t bf16;

INLINE vf load_f(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE vu load_u(const void *p) { vu v; memcpy(&v, p, sizeof v); return v; }
INLINE float widen(bf16 b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }

INLINE bf16 narrow(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (bf16)((u >> 16) | 0x40); /* a NaN stays one */
    return (bf16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

INLINE float sum_lanes(vf v)
{
    float part[LANES], total = 0;
    memcpy(part, &v, sizeof v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            part[i] += part[i + width];
    total = part[0];
    return total;
}

/* e^x for all lanes, relative error below 2e-7; inputs are clamped to where the result is a normal number. */
INLINE vf exp_lanes(vf x)
{
    const vf low = (vf){} - 87.0f, high = (vf){} + 88.0f, magic = (vf){} + 12582912.0f;
    x = (vf)(((vu)x & (vu)(x > low)) | ((vu)low & ~(vu)(x > low)));
    x = (vf)(((vu)x & (vu)(x < high)) | ((vu)high & ~(vu)(x < high)));
    vf shifted = x * 1.44269504f + magic;
    vf n = shifted - magic;
    vf r = x - n * 0.693359375f - n * -2.12194440e-4f;
    vf p = (vf){} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi power = ((vi)shifted << 23) + 0x3f800000;
    return p * (vf)power;
}

/* The three element kinds of a dot product. x is prepared once per row, see prepare(). */
#if defined(__AVX512BF16__)
#define BF16_X bf16
enum { BF16_STEP = 32 };
INLINE vf bf16_dot(vf acc, vu w, const bf16 *x)
{
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)load_u(x));
}
#else
#define BF16_X float
enum { BF16_STEP = 2 * LANES };
INLINE vf bf16_dot(vf acc, vu w, const float *x)
{
    acc += (vf)(w << 16) * load_f(x);                      /* even places */
    return acc + (vf)(w & 0xffff0000u) * load_f(x + LANES); /* odd places */
}
#endif

/* out[r][m] = dot(w + r*ldw, x[m]) for ROWS weight rows and COLS rows of x, count elements each. */
#define DEFINE_DOTS(NAME, W, X, STEP, MULTIPLY, TAIL)                                                           \
    INLINE void NAME(const W *w, int64_t ldw, const X *const *x, int64_t count, float *out, int64_t ldo,        \
                     const int ROWS, const int COLS)                                                            \
    {                                                                                                           \
        vf acc[8][4];                                                                                           \
        int64_t whole = count / STEP * STEP;                                                                    \
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int m = 0; m < COLS; m++) acc[r][m] = (vf){};         \
        for (int64_t i = 0; i < whole; i += STEP)                                                               \
            UNROLL for (int r = 0; r < ROWS; r++)                                                               \
            {                                                                                                   \
                vu part = load_u(w + r * ldw + i);                                                              \
                UNROLL for (int m = 0; m < COLS; m++) acc[r][m] = MULTIPLY(acc[r][m], part, x[m] + i);          \
            }                                                                                                   \
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int m = 0; m < COLS; m++)                             \
        {                                                                                                       \
            float total = sum_lanes(acc[r][m]);                                                                 \
            for (int64_t i = whole; i < count; i++) total += TAIL(w[r * ldw + i], x[m][i]);                     \
            out[r + m * ldo] = total;                                                                           \
        }                                                                                                       \
    }

INLINE vf f32_dot(vf acc, vu w, const float *x) { return acc + (vf)w * load_f(x); }
INLINE float f32_tail(float w, float x) { return w * x; }
#if defined(__AVX512BF16__)
INLINE float bf16_tail(bf16 w, bf16 x) { return widen(w) * widen(x); }
#else
INLINE float bf16_tail(bf16 w, float x) { return widen(w) * x; }
#endif

DEFINE_DOTS(dots_f32, float, float, LANES, f32_dot, f32_tail)
DEFINE_DOTS(dots_bf16, bf16, BF16_X, BF16_STEP, bf16_dot, bf16_tail)

/* The layout that bf16_dot wants x in: as it is for VDPBF16PS, else float32 with each step's even places first. */
INLINE void prepare_bf16(BF16_X *to, const float *from, int64_t count)
{
#if defined(__AVX512BF16__)
    for (int64_t i = 0; i < count; i++)
        to[i] = narrow(from[i]);
#else
    int64_t whole = count / BF16_STEP * BF16_STEP, i = 0;
    for (; i < whole; i += BF16_STEP)
        for (int j = 0; j < LANES; j++) {
            to[i + j] = widen(narrow(from[i + 2 * j]));
            to[i + LANES + j] = widen(narrow(from[i + 2 * j + 1]));
        }
    for (; i < count; i++)
        to[i] = widen(narrow(from[i]));
#endif
}

INLINE void prepare_f32(float *to, const float *from, int64_t count) { memcpy(to, from, count * sizeof(float)); }

/* Memory of a calling thread that is kept from call to call. */
static __thread struct { void *at; size_t size; } kept;

static void *scratch(size_t size)
{
    if (size > kept.size) {
        free(kept.at);
        kept.size = 0;
        if (posix_memalign(&kept.at, 64, size)) {
            kept.at = NULL;
            return NULL;
        }
        kept.size = size;
    }
    return kept.at;
}

struct job {
    int64_t rows, top_k, slots, hidden, width;
    int threads;
    const int32_t *slot_of;
    const float *weight_of;
    float *out;
    int64_t pairs, active;
    int64_t *begin;     /* [S + 1] first pair of each slot */
    int64_t *used;      /* [active] slots with pairs */
    int64_t *row;       /* [P] row of x */
    float *weight;      /* [P] */
    void *x, *hiddens;  /* prepared rows: [N, H] and [P, I] */
};

/* Pairs in order of slot, then of row. */
static void sort_pairs(struct job *j)
{
    int64_t all = j->rows * j->top_k, total = 0;
    memset(j->begin, 0, (j->slots + 1) * sizeof *j->begin);
    for (int64_t p = 0; p < all; p++)
        if (j->slot_of[p] >= 0)
            j->begin[j->slot_of[p]]++;
    j->active = 0;
    for (int64_t s = 0; s < j->slots; s++) {
        int64_t count = j->begin[s];
        if (count)
            j->used[j->active++] = s;
        j->begin[s] = total;
        total += count;
    }
    for (int64_t p = 0; p < all; p++)
        if (j->slot_of[p] >= 0) {
            int64_t at = j->begin[j->slot_of[p]]++;
            j->row[at] = p / j->top_k;
            j->weight[at] = j->weight_of[p];
        }
    memmove(j->begin + 1, j->begin, j->slots * sizeof *j->begin); /* each began where the one before ended */
    j->begin[0] = 0;
    j->pairs = total;
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* COUNT weight rows against 1 to 4 rows of x; every call below has ROWS and COLS as constants. */
#define DOTS(NAME, w, ldw, x, cols, count, out, ldo, ROWS)                                 \
    switch (cols) {                                                                        \
    case 1: NAME(w, ldw, x, count, out, ldo, ROWS, 1); break;                              \
    case 2: NAME(w, ldw, x, count, out, ldo, ROWS, 2); break;                              \
    case 3: NAME(w, ldw, x, count, out, ldo, ROWS, 3); break;                              \
    default: NAME(w, ldw, x, count, out, ldo, ROWS, 4); break;                             \
    }

#if LANES == 16
#define ROWS_AT_ONCE 4
#else
#define ROWS_AT_ONCE 2
#endif

#define DEFINE_SWIGLU(KIND, W, X)                                                                                      \
    /* out[m][r]: `rows` weight rows against `cols` rows of x. */                                                      \
    static void block_##KIND(const W *w, int64_t ldw, int64_t rows, const X *const *x, int64_t cols, int64_t count,    \
                             float *out)                                                                               \
    {                                                                                                                  \
        int64_t r = 0;                                                                                                 \
        for (; cols == 1 && r + 8 <= rows; r += 8)                                                                     \
            dots_##KIND(w + r * ldw, ldw, x, count, out + r, BLOCK, 8, 1);                                             \
        for (; r + ROWS_AT_ONCE <= rows; r += ROWS_AT_ONCE)                                                            \
            for (int64_t m = 0; m < cols; m += 4)                                                                      \
                DOTS(dots_##KIND, w + r * ldw, ldw, x + m, cols - m, count, out + r + m * BLOCK, BLOCK, ROWS_AT_ONCE)  \
        for (; r < rows; r++)                                                                                          \
            for (int64_t m = 0; m < cols; m += 4)                                                                      \
                DOTS(dots_##KIND, w + r * ldw, ldw, x + m, cols - m, count, out + r + m * BLOCK, BLOCK, 1)             \
    }                                                                                                                  \
                                                                                                                       \
    /* hiddens of one slot, places [i, i + rows) of its width. */                                                      \
    static void up_##KIND(const struct job *j, const W *w13, int64_t slot, int64_t i, int64_t rows)                    \
    {                                                                                                                  \
        const W *gate = w13 + (slot * 2 * j->width + i) * j->hidden, *up = gate + j->width * j->hidden;                \
        for (int64_t p = j->begin[slot]; p < j->begin[slot + 1]; p += CHUNK) {                                         \
            int64_t cols = smaller(CHUNK, j->begin[slot + 1] - p);                                                     \
            const X *x[CHUNK];                                                                                         \
            float gates[CHUNK * BLOCK], ups[CHUNK * BLOCK];                                                            \
            for (int64_t m = 0; m < cols; m++)                                                                         \
                x[m] = (const X *)j->x + j->row[p + m] * j->hidden;                                                    \
            block_##KIND(gate, j->hidden, rows, x, cols, j->hidden, gates);                                            \
            block_##KIND(up, j->hidden, rows, x, cols, j->hidden, ups);                                                \
            for (int64_t m = 0; m < cols; m++) {                                                                       \
                float *g = gates + m * BLOCK, *u = ups + m * BLOCK;                                                    \
                for (int64_t r = 0; r < BLOCK; r += LANES) {                                                           \
                    vf gv = load_f(g + r), hv = gv / (exp_lanes(-gv) + 1.0f) * load_f(u + r);                          \
                    memcpy(g + r, &hv, sizeof hv);                                                                     \
                }                                                                                                      \
                prepare_##KIND((X *)j->hiddens + (p + m) * j->width + i, g, rows);                                     \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* Places [h, h + rows) of every row's sum, slots in rising order. */                                              \
    static void down_##KIND(const struct job *j, const W *w2, int64_t h, int64_t rows)                                 \
    {                                                                                                                  \
        for (int64_t n = 0; n < j->rows; n++)                                                                          \
            memset(j->out + n * j->hidden + h, 0, rows * sizeof(float));                                               \
        for (int64_t a = 0; a < j->active; a++) {                                                                      \
            int64_t slot = j->used[a];                                                                                 \
            const W *w = w2 + (slot * j->hidden + h) * j->width;                                                       \
            for (int64_t p = j->begin[slot]; p < j->begin[slot + 1]; p += CHUNK) {                                     \
                int64_t cols = smaller(CHUNK, j->begin[slot + 1] - p);                                                 \
                const X *x[CHUNK];                                                                                     \
                float sums[CHUNK * BLOCK];                                                                             \
                for (int64_t m = 0; m < cols; m++)                                                                     \
                    x[m] = (const X *)j->hiddens + (p + m) * j->width;                                                 \
                block_##KIND(w, j->width, rows, x, cols, j->width, sums);                                              \
                for (int64_t m = 0; m < cols; m++) {                                                                   \
                    float *to = j->out + j->row[p + m] * j->hidden + h;                                                \
                    for (int64_t r = 0; r < rows; r++)                                                                 \
                        to[r] += j->weight[p + m] * sums[m * BLOCK + r];                                               \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static void run_##KIND(const struct job *j, const W *x, const W *w13, const W *w2)                                 \
    {                                                                                                                  \
        int64_t up_blocks = (j->width + BLOCK - 1) / BLOCK, down_blocks = (j->hidden + BLOCK - 1) / BLOCK;             \
        _Pragma("omp parallel num_threads(j->threads)")                                                                \
        {                                                                                                              \
            _Pragma("omp for schedule(static)")                                                                        \
            for (int64_t n = 0; n < j->rows; n++)                                                                      \
                take_##KIND((X *)j->x + n * j->hidden, x + n * j->hidden, j->hidden);                                  \
            _Pragma("omp for schedule(dynamic, 1)")                                                                    \
            for (int64_t item = 0; item < j->active * up_blocks; item++) {                                             \
                int64_t i = item % up_blocks * BLOCK;                                                                  \
                up_##KIND(j, w13, j->used[item / up_blocks], i, smaller(BLOCK, j->width - i));                         \
            }                                                                                                          \
            _Pragma("omp for schedule(dynamic, 1)")                                                                    \
            for (int64_t block = 0; block < down_blocks; block++)                                                      \
                down_##KIND(j, w2, block * BLOCK, smaller(BLOCK, j->hidden - block * BLOCK));                          \
        }                                                                                                              \
    }

enum { CHUNK = 64 }; /* rows of x that pass by one block of weights before the next block */
