/* Vectors of the target's width, bf16 conversions, and the exponential. No model, no memory layout. */
#ifndef TOKENYARD_LANES_H
#define TOKENYARD_LANES_H

#include <stdint.h>
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
#define UNROLL _Pragma("GCC unroll 16")

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint16_t bf16; /* the upper half of a float32 */

INLINE vf load_f(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE vu load_u(const void *p)
{
    vu v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE float widen(bf16 b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* To the nearest, ties to even; a NaN stays one. */
INLINE bf16 narrow(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (bf16)((u >> 16) | 0x40);
    return (bf16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

#if LANES == 16
#define PER_QUAD(a, b, c, d) {a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12}
#elif LANES == 8
#define PER_QUAD(a, b, c, d) {a, b, c, d, a + 4, b + 4, c + 4, d + 4}
#else
#define PER_QUAD(a, b, c, d) {a, b, c, d}
#endif
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi)PER_QUAD(__VA_ARGS__))

typedef float quad __attribute__((vector_size(16)));

/* The sums of the lanes of a, b, c and d; each in an order that does not depend on the others. */
INLINE quad sum_lanes(vf a, vf b, vf c, vf d)
{
    enum { O = LANES }; /* where the second operand's lanes begin */
    vf ab = SHUFFLE(a, b, 0, O, 1, O + 1) + SHUFFLE(a, b, 2, O + 2, 3, O + 3);
    vf cd = SHUFFLE(c, d, 0, O, 1, O + 1) + SHUFFLE(c, d, 2, O + 2, 3, O + 3);
    vf abcd = SHUFFLE(ab, cd, 0, 1, O, O + 1) + SHUFFLE(ab, cd, 2, 3, O + 2, O + 3);
    quad part[LANES / 4];
    memcpy(part, &abcd, sizeof abcd);
    UNROLL for (int width = LANES / 8; width; width /= 2)
        UNROLL for (int i = 0; i < width; i++)
            part[i] += part[i + width];
    return part[0];
}

INLINE vf select_lanes(vi where, vf yes, vf no) { return (vf)(((vi)yes & where) | ((vi)no & ~where)); }

/* e^x, relative error below 3e-7, for x clamped to [-87, 88], where the result is a normal number; NaN gives NaN. */
INLINE vf exp_lanes(vf x)
{
    const vf low = (vf){0} - 87.0f, high = (vf){0} + 88.0f, magic = (vf){0} + 12582912.0f; /* 1.5 * 2^23 */
    x = select_lanes(x < low, low, x);
    x = select_lanes(x > high, high, x);
    vf shifted = x * 1.44269504f + magic, n = shifted - magic;
    vf r = x - n * 0.693359375f - n * -2.12194440e-4f;
    vf p = (vf){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vf)(((vi)shifted << 23) + 0x3f800000);
}

#endif
