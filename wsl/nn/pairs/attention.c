/* Attention between nodes whose pairs have states: sum_j alpha_ij v_ij and sum_j alpha_ij e_ij, and the gradients.

       q_ij = q_i + Q e_ij,   k_ij = k_j + K e_ij,   v_ij = v_j * S e_ij (or v_j),
       alpha_ij = softmax_j(scale <q_ij, k_ij>), in every head

   A tile of whole rows (a row: all pairs of one query i) goes through all steps while it lies in the cache; no array
   of [pairs, channels] is ever in memory, and the backward pass computes all again. The products with the
   three maps, here side by side as one matrix, take most of the time; what else happens to their results is one pass
   over them each way.

   Compiled for REAL = float and double by kernels.py; the arguments are laid out by attention.py. */

#include "tile.h"

#define TILE 144 /* pairs of a tile, if rows are not longer */

typedef struct {
    int64_t heads, head, maps, edge; /* head, edge: widths, whole vectors; maps: 3, or 2 without S */
    double scale;
    const int64_t *key;
    const REAL *edges, *query, *keys, *values; /* [P, edge], [R, A], [N, A], [N, A] */
    const REAL *weight, *weight_t;             /* [maps A, edge] and [edge, maps A] */
    const REAL *of_y, *of_summed;              /* gradients [R, A], [R, heads, edge] */
    REAL *y, *summed;                          /* [R, A], [R, heads, edge] */
    REAL *of_edges, *of_query, *of_keys, *of_values, *of_weight;
} Attention;

typedef struct {
    REAL *maps, *edges, *of_edges, *alpha, *slope, *dots; /* [T, maps A], [T, edge] twice, [T, heads] twice, [heads] */
} Tile;

/* alpha[t][h] = softmax over the pairs t of a row of the scores in it */
static void softmax(REAL *restrict alpha, int64_t rows, int64_t degree, int64_t heads, REAL *restrict most)
{
    const int64_t size = degree * heads;
    for (int64_t r = 0; r < rows; r++) {
        REAL *restrict a = alpha + r * size;
        memcpy(most, a, (size_t)heads * sizeof *most);
        for (int64_t j = 0; j < size; j += heads)
            for (int64_t h = 0; h < heads; h++)
                most[h] = a[j + h] > most[h] ? a[j + h] : most[h];
        for (int64_t j = 0; j < size; j += heads)
            for (int64_t h = 0; h < heads; h++) {
                REAL below = a[j + h] - most[h];
                a[j + h] = below < LEAST ? LEAST : below; /* what is not a number stays it */
            }
    }
    for (int64_t i = 0; i < rows * size; i += LANES)
        store(alpha + i, exponential(load(alpha + i)));
    for (int64_t r = 0; r < rows; r++) {
        REAL *restrict a = alpha + r * size;
        memset(most, 0, (size_t)heads * sizeof *most);
        for (int64_t j = 0; j < size; j += heads)
            for (int64_t h = 0; h < heads; h++)
                most[h] += a[j + h];
        for (int64_t h = 0; h < heads; h++)
            most[h] = 1 / most[h];
        for (int64_t j = 0; j < size; j += heads)
            for (int64_t h = 0; h < heads; h++)
                a[j + h] *= most[h];
    }
}

/* slope: from the gradient of alpha to that of <q, k> */
static void softmax_backward(REAL *restrict slope, const REAL *restrict alpha, int64_t rows, int64_t degree,
                             int64_t heads, REAL *restrict mean, REAL scale)
{
    const int64_t size = degree * heads;
    for (int64_t r = 0; r < rows; r++, slope += size, alpha += size) {
        memset(mean, 0, (size_t)heads * sizeof *mean);
        for (int64_t j = 0; j < size; j += heads)
            for (int64_t h = 0; h < heads; h++)
                mean[h] += alpha[j + h] * slope[j + h];
        for (int64_t j = 0; j < size; j += heads)
            for (int64_t h = 0; h < heads; h++)
                slope[j + h] = scale * alpha[j + h] * (slope[j + h] - mean[h]);
    }
}

/* the maps of the states of a tile's pairs, and alpha */
static void scores(const Attention *f, Tile *tile, int64_t row, int64_t pair, int64_t rows, int64_t degree)
{
    const int64_t width = f->heads * f->head, all_maps = f->maps * width, pairs = rows * degree;
    memcpy(tile->edges, f->edges + pair * f->edge, (size_t)(pairs * f->edge) * sizeof(REAL));
    times(tile->maps, tile->edges, f->weight_t, pairs, f->edge, all_maps);
    Sums sums = {.out = tile->alpha};
    const REAL *q = tile->maps, scale = (REAL)f->scale;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < degree; j++, q += all_maps) {
            const REAL *of_row = f->query + (row + r) * width;
            const REAL *of_key = f->keys + f->key[pair + r * degree + j] * width;
            for (int64_t c = 0; c < width; c += f->head) {
                vec sum = all(0);
                for (int64_t i = c; i < c + f->head; i += LANES)
                    sum += (load(q + i) + load(of_row + i)) * (load(q + width + i) + load(of_key + i));
                push(&sums, scale * sum);
            }
        }
    finish(&sums);
    softmax(tile->alpha, rows, degree, f->heads, tile->dots);
}

INLINE void sums_of_tile(const Attention *f, Tile *tile, int64_t row, int64_t pair, int64_t rows, int64_t degree,
                         const int scaled)
{
    const int64_t width = f->heads * f->head, all_maps = f->maps * width;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t first = r * degree;
        const int64_t *key = f->key + pair + first;
        for (int64_t h = 0; h < f->heads; h++) {
            const REAL *alpha = tile->alpha + first * f->heads + h;
            const REAL *s = tile->maps + first * all_maps + 2 * width;
            for (int64_t c = h * f->head; c < (h + 1) * f->head; c += LANES) {
                vec sum = all(0);
                for (int64_t j = 0; j < degree; j++) {
                    vec v = alpha[j * f->heads] * load(f->values + key[j] * width + c);
                    sum += scaled ? v * load(s + j * all_maps + c) : v;
                }
                store(f->y + (row + r) * width + c, sum);
            }
            for (int64_t c = 0; c < f->edge; c += LANES) {
                vec sum = all(0);
                for (int64_t j = 0; j < degree; j++)
                    sum += alpha[j * f->heads] * load(tile->edges + (first + j) * f->edge + c);
                store(f->summed + ((row + r) * f->heads + h) * f->edge + c, sum);
            }
        }
    }
}

/* the gradient of alpha: of y and of summed along v_ij and e_ij */
INLINE void gradient_of_alpha(const Attention *f, Tile *tile, int64_t row, int64_t pair, int64_t rows, int64_t degree,
                              const int scaled)
{
    const int64_t width = f->heads * f->head, all_maps = f->maps * width;
    Sums sums = {.out = tile->slope};
    const REAL *s = tile->maps + 2 * width, *e = tile->edges;
    for (int64_t r = 0; r < rows; r++) {
        const REAL *of_y = f->of_y + (row + r) * width, *of_summed = f->of_summed + (row + r) * f->heads * f->edge;
        for (int64_t j = 0; j < degree; j++, s += all_maps, e += f->edge) {
            const REAL *value = f->values + f->key[pair + r * degree + j] * width;
            for (int64_t h = 0; h < f->heads; h++) {
                vec sum = all(0);
                for (int64_t c = h * f->head; c < (h + 1) * f->head; c += LANES) {
                    vec v = load(of_y + c) * load(value + c);
                    sum += scaled ? v * load(s + c) : v;
                }
                for (int64_t c = 0; c < f->edge; c += LANES)
                    sum += load(of_summed + h * f->edge + c) * load(e + c);
                push(&sums, sum);
            }
        }
    }
    finish(&sums);
}

/* in the place of Q e, K e and S e of one pair their gradients; what it adds to the gradients of its nodes */
INLINE void gradients_of_pair(const Attention *f, REAL *q, const REAL *alpha, const REAL *slope, int64_t row,
                              int64_t node, const int scaled)
{
    const int64_t width = f->heads * f->head;
    const REAL *of_y = f->of_y + row * width, *of_row = f->query + row * width;
    const REAL *of_key = f->keys + node * width, *value = f->values + node * width;
    REAL *k = q + width, *s = k + width;
    REAL *of_query = f->of_query + row * width, *of_keys = f->of_keys + node * width;
    REAL *of_values = f->of_values + node * width;
    for (int64_t h = 0; h < f->heads; h++) {
        const vec a = all(alpha[h]), g = all(slope[h]);
        for (int64_t c = h * f->head; c < (h + 1) * f->head; c += LANES) {
            vec sent = a * load(of_y + c), by_query = g * (load(k + c) + load(of_key + c));
            vec by_key = g * (load(q + c) + load(of_row + c));
            if (scaled) {
                store(of_values + c, load(of_values + c) + sent * load(s + c));
                store(s + c, sent * load(value + c));
            } else
                store(of_values + c, load(of_values + c) + sent);
            store(of_query + c, load(of_query + c) + by_query);
            store(of_keys + c, load(of_keys + c) + by_key);
            store(q + c, by_query);
            store(k + c, by_key);
        }
    }
}

INLINE void gradients_of_tile(const Attention *f, Tile *tile, int64_t row, int64_t pair, int64_t rows, int64_t degree,
                              const int scaled)
{
    const int64_t all_maps = f->maps * f->heads * f->head, pairs = rows * degree;
    gradient_of_alpha(f, tile, row, pair, rows, degree, scaled);
    softmax_backward(tile->slope, tile->alpha, rows, degree, f->heads, tile->dots, (REAL)f->scale);
    for (int64_t t = 0; t < pairs; t++) {
        const int64_t i = row + t / degree;
        const REAL *alpha = tile->alpha + t * f->heads, *of_summed = f->of_summed + i * f->heads * f->edge;
        gradients_of_pair(f, tile->maps + t * all_maps, alpha, tile->slope + t * f->heads, i, f->key[pair + t], scaled);
        for (int64_t c = 0; c < f->edge; c += LANES) {
            vec sum = all(0);
            for (int64_t h = 0; h < f->heads; h++)
                sum += alpha[h] * load(of_summed + h * f->edge + c);
            store(tile->of_edges + t * f->edge + c, sum);
        }
    }
    add_times(tile->of_edges, tile->maps, f->weight, pairs, all_maps, f->edge);
    memcpy(f->of_edges + pair * f->edge, tile->of_edges, (size_t)(pairs * f->edge) * sizeof(REAL));
    add_outer(f->of_weight, tile->maps, tile->edges, pairs, all_maps, f->edge);
}

static int64_t rows_of_tile(int64_t degree) { return degree < TILE ? TILE / degree : 1; }

static int tile_made(const Attention *f, Tile *tile, const int64_t *rectangles, int64_t count)
{
    int64_t most = TILE;
    for (int64_t n = 0; n < count; n++)
        most = rectangles[4 * n + 3] > most ? rectangles[4 * n + 3] : most;
    most = rounded_up(most, ROWS);
    tile->maps = numbers(most * f->maps * f->heads * f->head);
    tile->edges = numbers(most * f->edge), tile->of_edges = numbers(most * f->edge);
    tile->alpha = numbers(most * f->heads), tile->slope = numbers(most * f->heads), tile->dots = numbers(f->heads);
    return tile->maps && tile->edges && tile->of_edges && tile->alpha && tile->slope && tile->dots;
}

static void tile_freed(Tile *tile)
{
    free(tile->maps), free(tile->edges), free(tile->of_edges), free(tile->alpha), free(tile->slope), free(tile->dots);
}

/* Part `part` of `parts` of the work: its share of the rows of every rectangle (row, rows, pair, degree); 0, or 1 if
   there is no memory. Forward if y is not NULL, else backward. */
int attend(const Attention *f, const int64_t *rectangles, int64_t count, int64_t part, int64_t parts)
{
    Tile tile;
    int failed = !tile_made(f, &tile, rectangles, count);
    for (int64_t n = 0; n < count && !failed; n++, rectangles += 4) {
        const int64_t degree = rectangles[3], last = rectangles[1] * (part + 1) / parts, step = rows_of_tile(degree);
        for (int64_t r = rectangles[1] * part / parts; r < last; r += step) {
            const int64_t rows = last - r < step ? last - r : step, row = rectangles[0] + r;
            const int64_t pair = rectangles[2] + r * degree;
            scores(f, &tile, row, pair, rows, degree);
            if (f->y && f->maps == 3)
                sums_of_tile(f, &tile, row, pair, rows, degree, 1);
            else if (f->y)
                sums_of_tile(f, &tile, row, pair, rows, degree, 0);
            else if (f->maps == 3)
                gradients_of_tile(f, &tile, row, pair, rows, degree, 1);
            else
                gradients_of_tile(f, &tile, row, pair, rows, degree, 0);
        }
    }
    tile_freed(&tile);
    return failed;
}
