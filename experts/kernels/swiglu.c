/* Grouped SwiGLU over expert slots: sorting pairs, memory, and the two kinds of elements. Knows no layers or ranks.
 *
 * One source, compiled per instruction set: dot products of bf16 go through VDPBF16PS where the target has it, else
 * through float32. Sums are in float32; their order depends neither on the number of threads nor on how work was
 * divided among them. Letters: N rows of x, K slots per row, P pairs (row, slot), S slots, H hidden, I width.
 */
#include <stdlib.h>

#include "lanes.h"

enum {
    BLOCK = 32, /* weight rows per piece of work; a multiple of every STEP */
    CHUNK = 64, /* rows of x that pass by a block at a time */
    MOST_COLS = LANES == 16 ? 6 : 4 /* rows of x per tile: with 4 weight rows 24 of 32 registers, else 8 of 16 */
};

struct job {
    int64_t rows, top_k, slots, hidden, width, pairs, active;
    int threads;
    const int32_t *slot_of;  /* [N, K] */
    const float *weight_of;  /* [N, K] */
    float *out;              /* [N, H] */
    int64_t *begin;          /* [S + 1] first pair of each slot */
    int64_t *used;           /* [active] slots with pairs */
    int64_t *row;            /* [P] */
    float *weight;           /* [P] */
    void *x, *hiddens;       /* prepared rows [N, H] and [P, I] */
};

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

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
    memmove(j->begin + 1, j->begin, j->slots * sizeof *j->begin); /* each now stands where the next one begins */
    j->begin[0] = 0;
    j->pairs = total;
}

/* float32: as it is. */
INLINE vf f32_step(vf acc, const float *w, const float *x) { return acc + load_f(w) * load_f(x); }
INLINE float f32_tail(float w, float x) { return w * x; }
INLINE void f32_take(float *to, const float *from, int64_t count) { memcpy(to, from, count * sizeof *to); }

#define NAME(f) f32_##f
#define W float
#define X float
#define STEP LANES
#define STEP_DOT f32_step
#define TAIL f32_tail
#define TAKE f32_take
#define PREPARE f32_take
#include "grouped.h"

#ifdef __AVX512BF16__
/* bf16 with the instruction for it: pairs of products into float32 lanes. */
typedef bf16 bf16_x;
enum { BF16_STEP = 2 * LANES };
INLINE vf bf16_step(vf acc, const bf16 *w, const bf16 *x)
{
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)load_u(w), (__m512bh)load_u(x));
}
INLINE float bf16_tail(bf16 w, bf16 x) { return widen(w) * widen(x); }
INLINE void bf16_take(bf16 *to, const bf16 *from, int64_t count) { memcpy(to, from, count * sizeof *to); }
INLINE void bf16_prepare(bf16 *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = narrow(from[i]);
}
#else
/* bf16 through float32: x is kept widened, each step's even places before its odd ones, since the two halves of a
 * 32-bit lane of weights widen by a shift and by a mask. */
typedef float bf16_x;
enum { BF16_STEP = 2 * LANES };
INLINE vf bf16_step(vf acc, const bf16 *w, const float *x)
{
    vu both = load_u(w);
    acc += (vf)(both << 16) * load_f(x);
    return acc + (vf)(both & 0xffff0000u) * load_f(x + LANES);
}
INLINE float bf16_tail(bf16 w, float x) { return widen(w) * x; }
INLINE void bf16_take(float *to, const bf16 *from, int64_t count)
{
    int64_t i = 0;
    for (; i + BF16_STEP <= count; i += BF16_STEP)
        for (int lane = 0; lane < LANES; lane++) {
            to[i + lane] = widen(from[i + 2 * lane]);
            to[i + LANES + lane] = widen(from[i + 2 * lane + 1]);
        }
    for (; i < count; i++)
        to[i] = widen(from[i]);
}
INLINE void bf16_prepare(float *to, const float *from, int64_t count)
{
    bf16 rounded[BLOCK];
    for (int64_t i = 0; i < count; i++)
        rounded[i] = narrow(from[i]);
    bf16_take(to, rounded, count);
}
#endif

#define NAME(f) bf16_##f
#define W bf16
#define X bf16_x
#define STEP BF16_STEP
#define STEP_DOT bf16_step
#define TAIL bf16_tail
#define TAKE bf16_take
#define PREPARE bf16_prepare
#include "grouped.h"

/* Memory that a calling thread keeps from call to call, since fresh pages cost more than small products. */
static __thread void *kept;
static __thread size_t kept_size;

static void *keep(size_t size)
{
    if (size > kept_size) {
        free(kept);
        kept_size = 0;
        if (posix_memalign(&kept, 64, size)) {
            kept = NULL;
            return NULL;
        }
        kept_size = size;
    }
    return kept;
}

static char *carve(char **from, size_t size)
{
    char *at = *from;
    *from += (size + 63) / 64 * 64;
    return at;
}

/* out [N, H] float32 = for each row, the weighted sum over its slots of down(silu(gate(x)) * up(x)).
 *
 * is_bf16: element kind of x [N, H], w13 [S, 2I, H] (gate rows first) and w2 [S, H, I]; slot_of: [N, K], negative =
 * none, else below S; weight_of: [N, K]. Returns 0, or -1 when there is no memory.
 */
int tokenyard_swiglu(int is_bf16, const void *x, const int32_t *slot_of, const float *weight_of, const void *w13,
                     const void *w2, float *out, int64_t rows, int64_t top_k, int64_t slots, int64_t hidden,
                     int64_t width, int threads)
{
    struct job j = {.rows = rows, .top_k = top_k, .slots = slots, .hidden = hidden, .width = width,
                    .threads = threads, .slot_of = slot_of, .weight_of = weight_of, .out = out};
    size_t element = is_bf16 ? sizeof(bf16_x) : sizeof(float);
    size_t most = (size_t)(rows * top_k);
    char *memory = keep((2 * slots + 1 + most) * 8 + most * 4 + (rows * hidden + most * width) * element + 64 * 8);
    if (!memory)
        return -1;
    j.begin = (int64_t *)carve(&memory, (slots + 1) * 8);
    j.used = (int64_t *)carve(&memory, slots * 8);
    j.row = (int64_t *)carve(&memory, most * 8);
    j.weight = (float *)carve(&memory, most * 4);
    j.x = element == (is_bf16 ? sizeof(bf16) : sizeof(float)) ? (void *)x : carve(&memory, rows * hidden * element);
    j.hiddens = carve(&memory, most * width * element);
    sort_pairs(&j);
    if (is_bf16)
        bf16_run(&j, x, w13, w2);
    else
        f32_run(&j, x, w13, w2);
    return 0;
}

/* So that a loader can tell which build it has. */
const char *tokenyard_kernel_name(void)
{
#if defined(__AVX512BF16__)
    return "avx512-bf16";
#elif defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#else
    return "portable";
#endif
}
