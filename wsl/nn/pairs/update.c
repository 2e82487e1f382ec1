/* New states of pairs from the states of both directions and both nodes, and the gradients.

       z = B [e_ij ; e_ji] + q_i + k_j,          e'  = LN(e_ij + O GELU(z) + b)
       w = W e',                                 e'' = LN(e' + N GELU(w) + c)

   with dropout before either sum. A tile of pairs goes through all steps while it lies in the cache; only e is kept for
   the backward pass, which computes the rest again. What a pair adds to the gradient of its reverse is written beside
   (`of_reverse`), where no other thread writes: every pair is the reverse of one.

   Compiled for REAL = float and double by kernels.py; the arguments are laid out by update.py. */

#include "tile.h"
#include "gelu.h"

#define TILE 64 /* pairs */
#define EPSILON ((REAL)1e-5)

enum { BOTH, OUT, OUT_BIAS, WIDEN, NARROW, NARROW_BIAS, SCALE_1, SHIFT_1, SCALE_2, SHIFT_2, WEIGHTS };

typedef struct {
    int64_t edge, hidden, real; /* widths, whole vectors; the width of the edges before it was padded */
    int64_t seeds[2], below;    /* dropout: random bits of either step, and below what number of 32 bits they drop */
    double kept;                /* what survives is multiplied by this */
    const int64_t *query, *key, *partner;
    const REAL *edges, *of_query, *of_key; /* [P, edge], [N, hidden] twice */
    const REAL *weights[WEIGHTS]; /* B [hidden, 2 edge], O and N [edge, hidden], W [hidden, edge], …; norms may be NULL */
    const REAL *transposed[WEIGHTS];       /* of the four matrices */
    REAL *updated;                         /* [P, edge] */
    const REAL *of_updated;
    REAL *of_edges, *of_reverse, *of_query_nodes, *of_key_nodes; /* gradients, [P, edge] twice, [N, hidden] twice */
    REAL *of_weights[WEIGHTS];
} Update;

typedef struct {
    REAL *both, *z, *active, *sum, *w, *wide, *next;    /* [T, 2 edge]; z, GELU z; e'; w, GELU w; e'' */
    REAL *spread[2];                                    /* 1 / deviation, [T] each */
    REAL *step, *of_sum, *of_active, *totals, *mean;    /* what is on its way */
    REAL *room;
} Tile;

/* x [pairs, width] += bias */
static void add_bias(REAL *x, const REAL *bias, int64_t pairs, int64_t width)
{
    for (int64_t p = 0; p < pairs; p++)
        add_row(x + p * width, bias, width);
}

/* sum [width] += the rows of x [pairs, width] */
static void add_rows(REAL *sum, const REAL *x, int64_t pairs, int64_t width)
{
    for (int64_t p = 0; p < pairs; p++)
        add_row(sum, x + p * width, width);
}

/* x [pairs, edge] to (x - mean) / deviation; spread: 1 / deviation. Padded channels count for nothing. */
static void normalise(REAL *x, REAL *spread, REAL *mean, int64_t pairs, int64_t edge, int64_t real)
{
    const REAL share = (REAL)1 / real;
    Sums sums = {.out = mean};
    for (int64_t p = 0; p < pairs; p++) {
        vec sum = all(0);
        for (int64_t c = 0; c < edge; c += LANES)
            sum += load(x + p * edge + c);
        push(&sums, sum * share);
    }
    finish(&sums);
    sums = (Sums){.out = spread};
    for (int64_t p = 0; p < pairs; p++) {
        vec sum = all(0);
        for (int64_t c = 0; c < edge; c += LANES) {
            vec centred = load(x + p * edge + c) - mean[p];
            sum += centred * centred;
            store(x + p * edge + c, centred);
        }
        push(&sums, sum * share);
    }
    finish(&sums);
    for (int64_t p = 0; p < pairs; p++) {
        REAL variance = spread[p] - (edge - real) * share * mean[p] * mean[p];
        spread[p] = 1 / (REAL)ROOT(variance + EPSILON);
    }
    for (int64_t p = 0; p < pairs; p++)
        for (int64_t c = 0; c < edge; c += LANES)
            store(x + p * edge + c, load(x + p * edge + c) * spread[p]);
}

/* g: from the gradient of scale * x + shift to that of what x, normalised, was; adds to those of scale and shift */
static void normalise_backward(REAL *g, const REAL *x, const REAL *spread, const REAL *scale, REAL *of_scale,
                               REAL *of_shift, REAL *totals, int64_t pairs, int64_t edge, int64_t real)
{
    const REAL share = (REAL)1 / real;
    Sums sums = {.out = totals};
    for (int64_t p = 0; p < pairs; p++) {
        vec sum = all(0), along = all(0);
        for (int64_t c = 0; c < edge; c += LANES) {
            vec of_y = load(g + p * edge + c), at = load(x + p * edge + c), of_x = of_y * load(scale + c);
            store(of_scale + c, load(of_scale + c) + of_y * at);
            store(of_shift + c, load(of_shift + c) + of_y);
            store(g + p * edge + c, of_x);
            sum += of_x, along += of_x * at;
        }
        push(&sums, sum * share), push(&sums, along * share);
    }
    finish(&sums);
    for (int64_t p = 0; p < pairs; p++)
        for (int64_t c = 0; c < edge; c += LANES) {
            REAL *at = g + p * edge + c;
            store(at, spread[p] * (load(at) - totals[2 * p] - totals[2 * p + 1] * load(x + p * edge + c)));
        }
}

/* y [pairs, edge] = scale * x + shift, or x */
static void scaled_rows(REAL *y, const REAL *x, const REAL *scale, const REAL *shift, int64_t pairs, int64_t edge)
{
    for (int64_t i = 0; i < pairs * edge; i += LANES)
        store(y + i, scale ? load(x + i) * load(scale + i % edge) + load(shift + i % edge) : load(x + i));
}

static uint64_t mixed(uint64_t bits) /* the finaliser of SplitMix64 */
{
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return bits ^ bits >> 31;
}

/* Dropout of x [pairs, edge]. Random bits are a function of (seed, pair, channel): the same in the forward and in the
   backward pass and for any number of threads, and kept nowhere. */
static void drop(const Update *f, REAL *restrict x, int which, int64_t pair, int64_t pairs)
{
    const uint32_t below = (uint32_t)f->below;
    const REAL kept = (REAL)f->kept;
    for (int64_t p = 0; below && p < pairs; p++, x += f->edge) {
        const uint64_t key = mixed((uint64_t)f->seeds[which] + (uint64_t)(pair + p) * 0x9e3779b97f4a7c15u);
        const uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
        for (int64_t c = 0; c < f->edge; c++) {
            uint32_t bits = ((uint32_t)c + 1) * 0x9e3779b1u + low;
            bits = (bits ^ bits >> 16) * 0x85ebca6bu + high;
            bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
            x[c] *= (bits ^ bits >> 16) < below ? 0 : kept;
        }
    }
}

/* everything of `pairs` pairs from the first on; tile->sum and tile->next are normalised but not scaled */
static void forward(const Update *f, const Tile *t, int64_t pair, int64_t pairs)
{
    const int64_t edge = f->edge, hidden = f->hidden;
    const REAL *const *w = f->weights;
    for (int64_t p = 0; p < pairs; p++) {
        memcpy(t->both + 2 * p * edge, f->edges + (pair + p) * edge, (size_t)edge * sizeof(REAL));
        memcpy(t->both + (2 * p + 1) * edge, f->edges + f->partner[pair + p] * edge, (size_t)edge * sizeof(REAL));
    }
    times(t->z, t->both, f->transposed[BOTH], pairs, 2 * edge, hidden);
    for (int64_t p = 0; p < pairs; p++) {
        const REAL *q = f->of_query + f->query[pair + p] * hidden, *k = f->of_key + f->key[pair + p] * hidden;
        REAL *z = t->z + p * hidden;
        for (int64_t c = 0; c < hidden; c += LANES)
            store(z + c, load(z + c) + load(q + c) + load(k + c));
    }
    gelu(t->active, t->z, pairs * hidden);
    times(t->sum, t->active, f->transposed[OUT], pairs, hidden, edge);
    add_bias(t->sum, w[OUT_BIAS], pairs, edge);
    drop(f, t->sum, 0, pair, pairs);
    for (int64_t p = 0; p < pairs; p++)
        add_row(t->sum + p * edge, t->both + 2 * p * edge, edge);
    if (w[SCALE_1])
        normalise(t->sum, t->spread[0], t->mean, pairs, edge, f->real);
    scaled_rows(t->step, t->sum, w[SCALE_1], w[SHIFT_1], pairs, edge);
    times(t->w, t->step, f->transposed[WIDEN], pairs, edge, hidden);
    gelu(t->wide, t->w, pairs * hidden);
    times(t->next, t->wide, f->transposed[NARROW], pairs, hidden, edge);
    add_bias(t->next, w[NARROW_BIAS], pairs, edge);
    drop(f, t->next, 1, pair, pairs);
    for (int64_t i = 0; i < pairs * edge; i += LANES)
        store(t->next + i, load(t->next + i) + load(t->step + i));
    if (w[SCALE_2])
        normalise(t->next, t->spread[1], t->mean, pairs, edge, f->real);
}

/* through x -> dropout(N GELU(w) + bias): adds to the gradients of N and of the bias; t->of_active becomes that of w */
static void step_backward(const Update *f, const Tile *t, int which, int64_t pair, int64_t pairs)
{
    const int matrix = which ? NARROW : OUT, bias = which ? NARROW_BIAS : OUT_BIAS;
    const int64_t edge = f->edge, hidden = f->hidden;
    REAL *g = t->of_sum;
    if (f->below) {
        g = t->totals;
        memcpy(g, t->of_sum, (size_t)(pairs * edge) * sizeof(REAL));
        drop(f, g, which, pair, pairs);
    }
    add_rows(f->of_weights[bias], g, pairs, edge);
    add_outer(f->of_weights[matrix], g, which ? t->wide : t->active, pairs, edge, hidden);
    times(t->of_active, g, f->weights[matrix], pairs, edge, hidden);
    gelu_backward(t->of_active, which ? t->w : t->z, pairs * hidden);
}

static void backward(const Update *f, const Tile *t, int64_t pair, int64_t pairs)
{
    const int64_t edge = f->edge, hidden = f->hidden;
    const REAL *const *w = f->weights;
    REAL *const *of = f->of_weights;
    memcpy(t->of_sum, f->of_updated + pair * edge, (size_t)(pairs * edge) * sizeof(REAL));
    if (w[SCALE_2])
        normalise_backward(t->of_sum, t->next, t->spread[1], w[SCALE_2], of[SCALE_2], of[SHIFT_2], t->totals, pairs,
                           edge, f->real);
    step_backward(f, t, 1, pair, pairs);
    add_outer(of[WIDEN], t->of_active, t->step, pairs, hidden, edge);
    add_times(t->of_sum, t->of_active, w[WIDEN], pairs, hidden, edge);
    if (w[SCALE_1])
        normalise_backward(t->of_sum, t->sum, t->spread[0], w[SCALE_1], of[SCALE_1], of[SHIFT_1], t->totals, pairs,
                           edge, f->real);
    step_backward(f, t, 0, pair, pairs);
    add_outer(of[BOTH], t->of_active, t->both, pairs, hidden, 2 * edge);
    times(t->both, t->of_active, w[BOTH], pairs, hidden, 2 * edge);
    for (int64_t p = 0; p < pairs; p++) {
        add_row(f->of_query_nodes + f->query[pair + p] * hidden, t->of_active + p * hidden, hidden);
        add_row(f->of_key_nodes + f->key[pair + p] * hidden, t->of_active + p * hidden, hidden);
        add_row(t->of_sum + p * edge, t->both + 2 * p * edge, edge);
        memcpy(f->of_reverse + f->partner[pair + p] * edge, t->both + (2 * p + 1) * edge, (size_t)edge * sizeof(REAL));
    }
    memcpy(f->of_edges + pair * edge, t->of_sum, (size_t)(pairs * edge) * sizeof(REAL));
}

static int tile_made(const Update *f, Tile *t)
{
    const int64_t narrow = TILE * f->edge, wide = TILE * f->hidden, column = rounded_up(2 * TILE, LANES);
    REAL **arrays[] = {&t->both, &t->z,  &t->active,    &t->w,         &t->wide, &t->of_active, &t->sum,
                       &t->next, &t->step, &t->of_sum, &t->totals, &t->mean, &t->spread[0], &t->spread[1]};
    const int64_t sizes[] = {2 * narrow, wide,   wide,   wide,   wide,   wide,   narrow,
                             narrow,     narrow, narrow, narrow + column, column, column, column};
    const int count = sizeof sizes / sizeof sizes[0];
    int64_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += rounded_up(sizes[i], LANES);
    REAL *at = t->room = numbers(sum);
    for (int i = 0; at && i < count; i++, at += rounded_up(sizes[i - 1], LANES))
        *arrays[i] = at;
    return t->room != NULL;
}

/* Pairs first … last; 0, or 1 if there is no memory. Forward if `updated` is not NULL, else backward. */
int update(const Update *f, int64_t first, int64_t last)
{
    Tile tile;
    if (!tile_made(f, &tile))
        return 1;
    for (; first < last; first += TILE) {
        const int64_t pairs = last - first < TILE ? last - first : TILE;
        forward(f, &tile, first, pairs);
        if (f->updated)
            scaled_rows(f->updated + first * f->edge, tile.next, f->weights[SCALE_2], f->weights[SHIFT_2], pairs,
                        f->edge);
        else
            backward(f, &tile, first, pairs);
    }
    free(tile.room);
    return 0;
}
