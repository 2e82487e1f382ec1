/* Fit one SIREN after the other to an image: forward, backward and Adam in one pass over cache-sized tiles of pixels.

   Layer l of a SIREN computes h_l = sin(omega (W_l h_{l-1} + b_l)), the last y = W_L h_{L-1} + b_L + offset, and the
   loss is the mean squared error over pixels and channels. Nothing of the size [pixels, neurons] is ever kept: a tile
   of 32 pixels goes forward and backward while it lies in the L1 cache, so that arithmetic, not memory, sets the pace.

   Vectors run over neurons. Hidden widths are padded to whole vectors with weights of zero; a padded neuron has value
   sin 0 = 0 and all gradients that touch it are exactly 0, so Adam leaves it at zero.

   Compiled for REAL = float (the zoo) and REAL = double (tests) by native.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../vector.h"

#define TILE 32
#define ROWS 4 /* pixels, or output neurons, that share a load in the inner products: ROWS x 2 vectors of registers */

/* -- products of a tile ---------------------------------------------------------------------------------------------
   `vectors` is a constant (1 or 2) at every call, so the sums stay in registers. */

/* out[r][j] = start[j] + sum_k a[r][k] b[k][j] for ROWS rows r and `vectors` vectors j; start may be NULL */
INLINE void product(REAL *out, const REAL *a, const REAL *b, const REAL *start, int depth, int a_row, int b_row,
                    int out_row, const int vectors)
{
    vec sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = start ? load(start + v * LANES) : all(0);
    for (int k = 0; k < depth; k++, b += b_row) {
        vec second = vectors > 1 ? load(b + LANES) : all(0), first = load(b);
        for (int r = 0; r < ROWS; r++) {
            vec factor = all(a[r * a_row + k]);
            sum[r][0] += factor * first;
            if (vectors > 1)
                sum[r][1] += factor * second;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            store(out + r * out_row + v * LANES, sum[r][v]);
}

/* out[p][j] = start[j] + sum_k a[p][k] b[k][j], p < TILE rows used */
static void rows_times_matrix(REAL *out, const REAL *a, const REAL *b, const REAL *start, int rows, int depth,
                              int a_row, int width)
{
    for (int j = 0; j < width; j += 2 * LANES)
        for (int p = 0; p < rows; p += ROWS) {
            REAL *o = out + p * width + j;
            if (j + LANES < width)
                product(o, a + p * a_row, b + j, start ? start + j : NULL, depth, a_row, width, width, 2);
            else
                product(o, a + p * a_row, b + j, start ? start + j : NULL, depth, a_row, width, width, 1);
        }
}

/* gradient[o][j] += sum_p d[p][o] h[p][j] for ROWS outputs o and `vectors` vectors j */
INLINE void outer(REAL *gradient, const REAL *d, const REAL *h, int rows, int d_row, int width, const int vectors)
{
    vec sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = load(gradient + r * width + v * LANES);
    for (int p = 0; p < rows; p++, d += d_row, h += width) {
        vec second = vectors > 1 ? load(h + LANES) : all(0), first = load(h);
        for (int r = 0; r < ROWS; r++) {
            vec factor = all(d[r]);
            sum[r][0] += factor * first;
            if (vectors > 1)
                sum[r][1] += factor * second;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            store(gradient + r * width + v * LANES, sum[r][v]);
}

static void add_outer(REAL *gradient, const REAL *d, const REAL *h, int rows, int outputs, int width)
{
    for (int j = 0; j < width; j += 2 * LANES)
        for (int o = 0; o < outputs; o += ROWS) {
            if (j + LANES < width)
                outer(gradient + o * width + j, d + o, h + j, rows, outputs, width, 2);
            else
                outer(gradient + o * width + j, d + o, h + j, rows, outputs, width, 1);
        }
}

/* gradient[j] += sum_p factor[p] h[p][j]; a factor of NULL is 1 */
static void add_weighted(REAL *gradient, const REAL *factor, int stride, const REAL *h, int rows, int width)
{
    for (int j = 0; j < width; j += LANES) {
        vec sum[ROWS] = {load(gradient + j)}; /* ROWS sums: one alone would wait for itself at every step */
        for (int p = 0; p < rows; p += ROWS)
            for (int r = 0; r < ROWS; r++)
                sum[r] += (factor ? factor[(p + r) * stride] : 1) * load(h + (p + r) * width + j);
        for (int r = 1; r < ROWS; r++)
            sum[0] += sum[r];
        store(gradient + j, sum[0]);
    }
}

/* -- one network --------------------------------------------------------------------------------------------------- */

#define MAX_LAYERS 16

typedef struct {
    int layers;                /* linear layers, the last one included */
    int in[MAX_LAYERS];        /* inputs of a layer, padded (the first layer's are the coordinates, unpadded) */
    int out[MAX_LAYERS];       /* outputs, padded (the last layer's are the channels, unpadded) */
    long weight[MAX_LAYERS];   /* where the weight lies: [in, out] in the first layer, else [out, in] */
    long bias[MAX_LAYERS];
    long size;                 /* padded values, a whole number of vectors */
    REAL *turned[MAX_LAYERS];  /* a hidden layer's weight as [in, out], for the forward pass */
    REAL *h[MAX_LAYERS];       /* [TILE, out] values of a hidden layer */
    REAL *slope[MAX_LAYERS];   /* [TILE, out] omega cos(…), then the gradient at the pre-activation */
    REAL *x, *dy;              /* [TILE, d_0], [TILE, channels] */
    REAL *p, *g, *m, *v;       /* parameters, gradient and Adam's two moments */
} Network;

static long whole(long n, long unit) { return (n + unit - 1) / unit * unit; }

static void activate(REAL *z, REAL *slope, long n, REAL omega)
{
    for (long i = 0; i < n; i += LANES) {
        vec sine, cosine;
        sine_cosine(load(z + i) * omega, &sine, &cosine);
        store(z + i, sine);
        store(slope + i, cosine * omega);
    }
}

/* Forward and, where `backward`, the gradient of one tile, added to net->g; returns the sum of squared errors. */
static double tile(const Network *net, const REAL *target, int n, REAL omega, REAL offset, REAL scale, int backward)
{
    int last = net->layers - 1, channels = net->out[last], rows = (int)whole(n, ROWS), width = net->in[last];
    for (int l = 0; l < last; l++) {
        const REAL *from = l ? net->h[l - 1] : net->x;
        const REAL *weight = l ? net->turned[l] : net->p + net->weight[0];
        rows_times_matrix(net->h[l], from, weight, net->p + net->bias[l], rows, net->in[l], net->in[l], net->out[l]);
        activate(net->h[l], net->slope[l], (long)rows * net->out[l], omega);
    }
    double squared = 0;
    memset(net->dy, 0, sizeof(REAL) * TILE * channels);
    for (int p = 0; p < n; p++)
        for (int c = 0; c < channels; c++) {
            const REAL *weight = net->p + net->weight[last] + c * width, *h = net->h[last - 1] + p * width;
            vec sum = load(h) * load(weight);
            for (int i = LANES; i < width; i += LANES)
                sum += load(h + i) * load(weight + i);
            REAL error = total(sum) + net->p[net->bias[last] + c] + offset - target[p * channels + c];
            squared += (double)error * error;
            net->dy[p * channels + c] = error * scale;
        }
    if (!backward)
        return squared;

    REAL *d = net->slope[last - 1], *h = net->h[last - 1];
    for (int c = 0; c < channels; c++) {
        for (int p = 0; p < rows; p++)
            net->g[net->bias[last] + c] += net->dy[p * channels + c];
        add_weighted(net->g + net->weight[last] + c * width, net->dy + c, channels, h, rows, width);
    }
    for (int p = 0; p < rows; p++)
        for (int i = 0; i < width; i += LANES) {
            vec arriving = all(0);
            for (int c = 0; c < channels; c++)
                arriving += net->dy[p * channels + c] * load(net->p + net->weight[last] + c * width + i);
            store(d + p * width + i, load(d + p * width + i) * arriving);
        }
    for (int l = last - 1; l >= 0; l--) {
        int out = net->out[l], in = net->in[l];
        REAL *dz = net->slope[l], *weight = net->g + net->weight[l];
        add_weighted(net->g + net->bias[l], NULL, 0, dz, rows, out);
        if (l == 0) {
            for (int i = 0; i < in; i++)
                add_weighted(weight + i * out, net->x + i, in, dz, rows, out);
            break;
        }
        add_outer(weight, dz, net->h[l - 1], rows, out, in);
        /* h is not needed any more: it takes the gradient that arrives at the layer below */
        rows_times_matrix(net->h[l - 1], dz, net->p + net->weight[l], NULL, rows, out, out, in);
        for (long i = 0; i < (long)rows * in; i += LANES)
            store(net->slope[l - 1] + i, load(net->slope[l - 1] + i) * load(net->h[l - 1] + i));
    }
    return squared;
}

/* Mean squared error over the image and, where `backward`, its gradient in net->g. */
static double image(const Network *net, const REAL *coordinates, const REAL *target, long pixels, REAL omega,
                    REAL offset, int backward)
{
    int inputs = net->in[0], channels = net->out[net->layers - 1];
    double squared = 0;
    memset(net->g, 0, sizeof(REAL) * net->size);
    for (int l = 1; l < net->layers - 1; l++)
        for (int o = 0; o < net->out[l]; o++)
            for (int i = 0; i < net->in[l]; i++)
                net->turned[l][i * net->out[l] + o] = net->p[net->weight[l] + o * net->in[l] + i];
    for (long p = 0; p < pixels; p += TILE) {
        int n = pixels - p < TILE ? (int)(pixels - p) : TILE;
        memset(net->x, 0, sizeof(REAL) * TILE * inputs);
        memcpy(net->x, coordinates + p * inputs, sizeof(REAL) * n * inputs);
        squared += tile(net, target + p * channels, n, omega, offset, (REAL)(2.0 / (pixels * channels)), backward);
    }
    return squared / (double)(pixels * channels);
}

static void adam(const Network *net, int step, double rate, double beta1, double beta2, double eps)
{
    REAL keep1 = (REAL)beta1, keep2 = (REAL)beta2, new1 = (REAL)(1 - beta1), new2 = (REAL)(1 - beta2), e = (REAL)eps;
    REAL size = (REAL)(rate / (1 - pow(beta1, step))), root = (REAL)(1 / sqrt(1 - pow(beta2, step)));
    REAL *restrict p = net->p, *restrict m = net->m, *restrict v = net->v;
    const REAL *restrict g = net->g;
    for (long i = 0; i < net->size; i++) {
        m[i] = keep1 * m[i] + new1 * g[i];
        v[i] = keep2 * v[i] + new2 * g[i] * g[i];
        p[i] -= size * m[i] / (ROOT(v[i]) * root + e);
    }
}

/* Copy the rows of the zoo, [W_1 | b_1 | W_2 | …] with W_l [out, in], to the padded layout, or back. */
static void copy(const Network *net, const int32_t *widths, REAL *row, int back)
{
    for (int l = 0; l < net->layers; l++) {
        int in = widths[l], out = widths[l + 1];
        for (int o = 0; o < out; o++) {
            for (int i = 0; i < in; i++) {
                REAL *at = net->p + net->weight[l] + (l ? o * net->in[l] + i : i * net->out[l] + o);
                if (back) row[o * in + i] = *at; else *at = row[o * in + i];
            }
            REAL *at = net->p + net->bias[l] + o;
            if (back) row[out * in + o] = *at; else *at = row[out * in + o];
        }
        row += out * (in + 1);
    }
}

/* Lay the network out in one block of memory; with memory NULL only count. Returns the values needed. */
static long arrange(Network *net, int layers, const int32_t *widths, REAL *memory)
{
    long used = 0;
    net->layers = layers;
    net->size = 0;
    for (int l = 0; l < layers; l++) {
        net->in[l] = l ? (int)whole(widths[l], LANES) : widths[l];
        net->out[l] = l < layers - 1 ? (int)whole(widths[l + 1], LANES) : widths[l + 1];
        net->weight[l] = net->size;
        net->size += whole((long)net->in[l] * net->out[l], LANES);
        net->bias[l] = net->size;
        net->size += whole(net->out[l], LANES);
    }
#define TAKE(pointer, count) ((pointer) = memory ? memory + used : NULL, used += whole(count, LANES))
    TAKE(net->p, net->size), TAKE(net->g, net->size), TAKE(net->m, net->size), TAKE(net->v, net->size);
    TAKE(net->x, TILE * net->in[0]), TAKE(net->dy, TILE * net->out[layers - 1]);
    for (int l = 0; l < layers - 1; l++) {
        TAKE(net->turned[l], (long)net->in[l] * net->out[l]);
        TAKE(net->h[l], TILE * net->out[l]), TAKE(net->slope[l], TILE * net->out[l]);
    }
#undef TAKE
    return used;
}

/* Fit `networks` networks, each to its own image; rows [networks, P] are changed in place.

   rates: learning rate, beta1, beta2, eps. A network stops as soon as its error is at most stop_mse; errors[b] is the
   error of the weights returned, steps[b] the number of updates made. Returns 0, or 1 without memory, or 2 if there are
   too many layers or no hidden one. */
int siren_fit(int64_t networks, int layers, const int32_t *widths, REAL *rows, const REAL *coordinates,
              const REAL *targets, int64_t pixels, double omega, double offset, const double *rates, int max_steps,
              double stop_mse, double *errors, int32_t *steps)
{
    Network net;
    if (layers < 2 || layers > MAX_LAYERS)
        return 2;
    long count = arrange(&net, layers, widths, NULL), values = 0, step;
    for (int l = 0; l < layers; l++)
        values += (long)widths[l + 1] * (widths[l] + 1);
    REAL *memory = aligned_alloc(BYTES, sizeof(REAL) * count);
    if (!memory)
        return 1;
    arrange(&net, layers, widths, memory);
    for (int64_t b = 0; b < networks; b++) {
        const REAL *target = targets + b * pixels * widths[layers];
        memset(memory, 0, sizeof(REAL) * count);
        copy(&net, widths, rows + b * values, 0);
        for (step = 0;; step++) {
            int more = step < max_steps;
            errors[b] = image(&net, coordinates, target, pixels, (REAL)omega, (REAL)offset, more);
            if (!more || errors[b] <= stop_mse)
                break;
            adam(&net, (int)step + 1, rates[0], rates[1], rates[2], rates[3]);
        }
        steps[b] = (int32_t)step;
        copy(&net, widths, rows + b * values, 1);
    }
    free(memory);
    return 0;
}
