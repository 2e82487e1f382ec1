/* A convolution over images without padding, and its gradients; also, with a kernel of one cell, a linear layer.

   Values lie as [image, row, column, channel], channels padded with zeros to whole vectors (not those of the images).
   Weights lie as [kernel row, kernel column, in channel, out channel], so a kernel's row meets consecutive values, and
   an inner loop multiplies vectors of out channels by one value for each of GROUP positions. Padding stays zero: its
   gradients are. */

#include <stdint.h>
#include "activation.h"

#define GROUP 8

typedef struct {
    int in, out, in_stored, out_stored, kernel, stride, width, rows, columns; /* width: of the input */
    int64_t frame;              /* values of one input image */
    int32_t *at;                /* where the kernel begins, for each output position of a batch */
    REAL *weight, *turned;      /* [taps, in, out], and [taps, out, in] for the way back */
    REAL *gradient, *mean, *square; /* of weight, and of bias behind it, as are the next three */
    REAL *y, *slope, *dy;       /* [images, positions, out]: values, their derivative by what entered the activation */
} Layer;

static void forward(const Layer *l, const REAL *x, int64_t positions)
{
    const int run = l->kernel * l->in_stored, row = l->width * l->in_stored, out = l->out_stored;
    const REAL *bias = l->weight + (int64_t)l->kernel * run * out;
    for (int64_t p = 0; p < positions; p += GROUP) {
        const REAL *from[GROUP];
        for (int t = 0; t < GROUP; t++)
            from[t] = x + l->at[p + t < positions ? p + t : positions - 1];
        for (int j = 0; j < out; j += LANES) {
            vec sum[GROUP];
#pragma GCC unroll 8
            for (int t = 0; t < GROUP; t++)
                sum[t] = load(bias + j);
            for (int k = 0; k < l->kernel; k++) {
                const REAL *w = l->weight + (int64_t)k * run * out + j;
                for (int e = 0; e < run; e++) {
                    vec v = load(w + (int64_t)e * out);
#pragma GCC unroll 8
                    for (int t = 0; t < GROUP; t++)
                        sum[t] += from[t][k * row + e] * v;
                }
            }
            for (int t = 0; t < GROUP && p + t < positions; t++)
                store(l->y + (p + t) * out + j, sum[t]);
        }
    }
}

/* gradients of ``count`` <= GROUP consecutive weights of a kernel's row, for one vector of out channels */
INLINE void weights_back(const Layer *l, const REAL *x, const REAL *dy, REAL *gradient, int64_t positions, int count)
{
    vec sum[GROUP];
#pragma GCC unroll 8
    for (int e = 0; e < count; e++)
        sum[e] = all(0);
    for (int64_t p = 0; p < positions; p++) {
        vec d = load(dy + p * l->out_stored);
        const REAL *from = x + l->at[p];
#pragma GCC unroll 8
        for (int e = 0; e < count; e++)
            sum[e] += from[e] * d;
    }
#pragma GCC unroll 8
    for (int e = 0; e < count; e++)
        store(gradient + (int64_t)e * l->out_stored, sum[e]);
}

static void backward_weights(const Layer *l, const REAL *x, int64_t positions)
{
    const int run = l->kernel * l->in_stored, row = l->width * l->in_stored, out = l->out_stored;
    for (int j = 0; j < out; j += LANES) {
        for (int k = 0; k < l->kernel; k++)
            for (int e = 0; e < run; e += GROUP) {
                REAL *gradient = l->gradient + (int64_t)(k * run + e) * out + j;
                const REAL *from = x + k * row + e, *dy = l->dy + j;
                switch (run - e) {
                case 1: weights_back(l, from, dy, gradient, positions, 1); break;
                case 2: weights_back(l, from, dy, gradient, positions, 2); break;
                case 3: weights_back(l, from, dy, gradient, positions, 3); break;
                case 4: weights_back(l, from, dy, gradient, positions, 4); break;
                case 5: weights_back(l, from, dy, gradient, positions, 5); break;
                case 6: weights_back(l, from, dy, gradient, positions, 6); break;
                case 7: weights_back(l, from, dy, gradient, positions, 7); break;
                default: weights_back(l, from, dy, gradient, positions, GROUP);
                }
            }
        vec sum = all(0);
        for (int64_t p = 0; p < positions; p++)
            sum += load(l->dy + p * out + j);
        store(l->gradient + (int64_t)l->kernel * run * out + j, sum);
    }
}

/* adds to dx, which is zero, the gradient of what the layer read */
static void backward_input(const Layer *l, REAL *dx, int64_t positions)
{
    const int in = l->in_stored, row = l->width * in;
    for (int tap = 0; tap < l->kernel * l->kernel; tap++)
        for (int o = 0; o < l->out; o++)
            for (int i = 0; i < in; i++)
                l->turned[((int64_t)tap * l->out + o) * in + i] =
                    l->weight[((int64_t)tap * in + i) * l->out_stored + o];
    for (int64_t p = 0; p < positions; p += GROUP) {
        const REAL *from[GROUP];
        for (int t = 0; t < GROUP; t++)
            from[t] = l->dy + (p + t < positions ? p + t : positions - 1) * l->out_stored;
        for (int tap = 0; tap < l->kernel * l->kernel; tap++)
            for (int j = 0; j < in; j += LANES) {
                const REAL *w = l->turned + (int64_t)tap * l->out * in + j;
                REAL *to = dx + tap / l->kernel * row + tap % l->kernel * in + j;
                vec sum[GROUP];
#pragma GCC unroll 8
                for (int t = 0; t < GROUP; t++)
                    sum[t] = all(0);
                for (int o = 0; o < l->out; o++) {
                    vec v = load(w + (int64_t)o * in);
#pragma GCC unroll 8
                    for (int t = 0; t < GROUP; t++)
                        sum[t] += from[t][o] * v;
                }
                for (int t = 0; t < GROUP && p + t < positions; t++)
                    store(to + l->at[p + t], load(to + l->at[p + t]) + sum[t]);
            }
    }
}

/* -- dropout: a hash of (key, step, layer, element), the same in classifier_torch.py ------------------------------- */

INLINE uint32_t mixed(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

static void drop(const Layer *l, uint32_t key, uint32_t threshold, int64_t positions)
{
    const REAL keep = 1 / (1 - (REAL)threshold / 16777216);
    for (int64_t p = 0; p < positions; p++) {
        REAL *restrict y = l->y + p * l->out_stored, *restrict slope = l->slope + p * l->out_stored;
        for (int c = 0; c < l->out; c++) {
            REAL factor = (mixed(key + (uint32_t)p * (uint32_t)l->out + (uint32_t)c) >> 8) >= threshold ? keep : 0;
            y[c] *= factor;
            slope[c] *= factor;
        }
    }
}
