/* Vectors as wide as the machine's registers; sine, cosine and exponential; for REAL = float and REAL = double. */

#ifdef __AVX512F__
#define BYTES 64
#else
#define BYTES 32
#endif
typedef REAL vec __attribute__((vector_size(BYTES)));
typedef INTEGER ivec __attribute__((vector_size(BYTES)));
#define LANES ((int)(BYTES / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const REAL *p) { return *(const vec *)p; }
INLINE void store(REAL *p, vec v) { *(vec *)p = v; }
INLINE vec all(REAL x) { return x - (vec){0}; }

/* Sine and cosine of one argument.

   x = n pi + r with |r| <= pi/2, so sin x = (-1)^n sin r and cos x = (-1)^n cos r: one reduction serves both, and no
   lane has to choose between two series. double takes Taylor's, float the polynomials whose largest error on the
   interval is least (5e-9 and 3e-10, by Lawson's iteration on 3,000 points). Adding 1.5 * 2^(mantissa bits) rounds
   x / pi to an integer whose parity is the lowest bit of the sum. pi is subtracted in three parts, of which n * PI_1
   and n * PI_2 are exact. */

#if IS_DOUBLE
#define ROUNDER 6755399441055744.0
#define SIGN_SHIFT 63
#define PI_1 3.141592651605606
#define PI_2 1.9841871479187034e-09
#define PI_3 1.1442377452219664e-17
static const REAL SINE[] = {-1. / 6, 1. / 120, -1. / 5040, 1. / 362880, -1. / 39916800, 1. / 6227020800.,
                            -1. / 1307674368000., 1. / 355687428096000., -1. / 121645100408832000.,
                            1. / 51090942171709440000.};
static const REAL COSINE[] = {-1. / 2, 1. / 24, -1. / 720, 1. / 40320, -1. / 3628800, 1. / 479001600.,
                              -1. / 87178291200., 1. / 20922789888000., -1. / 6402373705728000.,
                              1. / 2432902008176640000., -1. / 1124000727777607680000.};
#else
#define ROUNDER 12582912.0f
#define SIGN_SHIFT 31
#define PI_1 3.140625f
#define PI_2 9.67502593994140625e-4f
#define PI_3 1.509957990978376432e-7f
static const REAL SINE[] = {-1.666665710e-01f, 8.333017289e-03f, -1.980661500e-04f, 2.600054325e-06f};
static const REAL COSINE[] = {-4.999999955e-01f, 4.166664073e-02f, -1.388840350e-03f, 2.476188607e-05f,
                              -2.607710196e-07f};
#endif
#define TERMS(table) ((int)(sizeof(table) / sizeof(table[0])))

INLINE vec series(vec square, const REAL *table, int terms)
{
    vec sum = all(table[terms - 1]);
    for (int k = terms - 2; k >= 0; k--)
        sum = sum * square + table[k];
    return sum * square;
}

INLINE void sine_cosine(vec x, vec *sine, vec *cosine)
{
    vec rounded = x * (REAL)0.31830988618379067154 + ROUNDER;
    ivec sign = (ivec)rounded << SIGN_SHIFT;
    vec n = rounded - ROUNDER;
    vec r = ((x - n * PI_1) - n * PI_2) - n * PI_3;
    vec square = r * r;
    *sine = (vec)((ivec)(r + r * series(square, SINE, TERMS(SINE))) ^ sign);
    *cosine = (vec)((ivec)(series(square, COSINE, TERMS(COSINE)) + 1) ^ sign);
}

#if IS_DOUBLE
#define MANTISSA 52
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define EXP_TERMS 14
#else
#define MANTISSA 23
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define EXP_TERMS 7
#endif

/* e^x for -80 <= x <= 40 (double: for |x| <= 700): 2^n times a power series on |r| <= ln(2) / 2 */
INLINE vec exponential(vec x)
{
    vec rounded = x * (REAL)1.4426950408889634074 + ROUNDER;
    vec n = rounded - ROUNDER;
    vec r = (x - n * LN2_HIGH) - n * LN2_LOW;
    vec sum = all(1);
    for (int k = EXP_TERMS; k >= 1; k--)
        sum = sum * r * (REAL)(1.0 / k) + 1;
    return (vec)((ivec)sum + ((ivec)rounded << MANTISSA));
}

/* the sum of the lanes */
INLINE REAL total(vec v)
{
    REAL part[LANES] __attribute__((aligned(BYTES)));
    store(part, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            part[i] += part[i + half];
    return part[0];
}
