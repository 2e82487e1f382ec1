/* Tanh and the activations of small classifiers, with their derivatives. */

#include <math.h>
#include <stdint.h>
#include "../../vector.h"

enum { RELU, TANH, GELU };

#if IS_DOUBLE
#define ERROR_FUNCTION erf
#define EXPONENTIAL exp
#else
#define ERROR_FUNCTION erff
#define EXPONENTIAL expf
#endif

/* 1 - 2 / (e^2x + 1); near zero, where that cancels, the power series */
INLINE vec tangent(vec x)
{
    static const REAL SERIES[] = {-1. / 3, 2. / 15, -17. / 315, 62. / 2835, -1382. / 155925, 21844. / 6081075,
                                  -929569. / 638512875};
    vec square = x * x;
    vec near = x + x * series(square, SERIES, TERMS(SERIES));
    ivec high = x > (REAL)20, low = x < (REAL)-20;
    vec clamped = (vec)(((ivec)all(20) & high) | ((ivec)all(-20) & low) | ((ivec)x & ~(high | low)));
    vec far = 1 - 2 / (exponential(2 * clamped) + 1);
    ivec small = square < (REAL)0.0625;
    return (vec)(((ivec)near & small) | ((ivec)far & ~small));
}

static void activate(int activation, REAL *restrict y, REAL *restrict slope, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        vec z = load(y + i);
        if (activation == RELU) {
            ivec positive = z > (REAL)0;
            store(y + i, (vec)((ivec)z & positive));
            store(slope + i, (vec)((ivec)all(1) & positive));
        } else if (activation == TANH) {
            vec t = tangent(z);
            store(y + i, t);
            store(slope + i, 1 - t * t);
        } else {
            for (int lane = 0; lane < LANES; lane++) {
                REAL v = y[i + lane], below = (REAL)0.5 * (1 + ERROR_FUNCTION(v * (REAL)0.70710678118654752440));
                y[i + lane] = v * below;
                slope[i + lane] = below + v * (REAL)0.39894228040143267794 * EXPONENTIAL((REAL)-0.5 * v * v);
            }
        }
    }
}
