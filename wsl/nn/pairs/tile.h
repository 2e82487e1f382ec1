/* What the kernels on pairs of nodes share: products, norms and GELU of a tile of pairs that lies in the cache.

   A tile is an array [pairs, width]; widths are whole vectors (pairs/kernels.py pads them), and there is room for pairs
   up to the next multiple of ROWS, whose content is never used. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../vector.h"

#if BYTES == 64
#define ROWS 8 /* rows of an inner product that share a load: ROWS x 2 vectors of registers */
#else
#define ROWS 4
#endif

#if IS_DOUBLE
#define LEAST (-700.0) /* of what the exponential is taken of: it is nothing beside 1 */
#else
#define LEAST (-80.0f)
#endif

static int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

/* room for `count` numbers, and a vector more */
static REAL *numbers(int64_t count)
{
    return aligned_alloc(BYTES, (size_t)rounded_up((count + LANES) * (int64_t)sizeof(REAL), BYTES));
}

/* -- products ---------------------------------------------------------------------------------------------------- */

/* out[r][j] = (or +=) sum_k a[r][k] b[k][j], ROWS rows r, `vectors` vectors j; a[r][k] stands at r a_row + k a_step */
INLINE void block(REAL *out, int64_t out_row, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b,
                  int64_t b_row, int64_t depth, const int add, const int vectors)
{
    vec sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? load(out + r * out_row + v * LANES) : all(0);
    for (int64_t k = 0; k < depth; k++, a += a_step, b += b_row) {
        vec first = load(b), second = vectors > 1 ? load(b + LANES) : first;
        for (int r = 0; r < ROWS; r++) {
            vec factor = all(a[r * a_row]);
            sum[r][0] += factor * first;
            if (vectors > 1)
                sum[r][1] += factor * second;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            store(out + r * out_row + v * LANES, sum[r][v]);
}

/* the same for any number of rows, rounded up to ROWS, and `width` columns of b */
INLINE void product(REAL *out, int64_t out_row, const REAL *a, int64_t a_row, int64_t a_step, const REAL *b,
                    int64_t b_row, int64_t rows, int64_t depth, int64_t width, const int add)
{
    for (int64_t j = 0; j < width; j += 2 * LANES)
        for (int64_t r = 0; r < rows; r += ROWS) {
            REAL *o = out + r * out_row + j;
            if (j + LANES < width)
                block(o, out_row, a + r * a_row, a_row, a_step, b + j, b_row, depth, add, 2);
            else
                block(o, out_row, a + r * a_row, a_row, a_step, b + j, b_row, depth, add, 1);
        }
}

/* out [rows, width] = a [rows, depth] b [depth, width], dense */
static void times(REAL *out, const REAL *a, const REAL *b, int64_t rows, int64_t depth, int64_t width)
{
    product(out, width, a, depth, 1, b, width, rows, depth, width, 0);
}

/* out += a b */
static void add_times(REAL *out, const REAL *a, const REAL *b, int64_t rows, int64_t depth, int64_t width)
{
    product(out, width, a, depth, 1, b, width, rows, depth, width, 1);
}

/* out [columns, width] += a^T b, the sum over pairs of a [pairs, columns] and b [pairs, width] */
static void add_outer(REAL *out, const REAL *a, const REAL *b, int64_t pairs, int64_t columns, int64_t width)
{
    product(out, width, a, 1, columns, b, width, columns, pairs, width, 1);
}

/* -- sums over the lanes of many vectors, a vector of sums at a time ----------------------------------------------- */

typedef struct {
    REAL *out;
    int count;
    vec part[LANES];
} Sums;

INLINE vec neighbours_added(vec a, vec b)
{
    ivec even, odd;
    for (int i = 0; i < LANES; i++)
        even[i] = 2 * i, odd[i] = 2 * i + 1;
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
}

INLINE void flush(Sums *sums)
{
    vec part[LANES];
    for (int i = 0; i < LANES; i++)
        part[i] = sums->part[i];
    for (int left = LANES / 2; left; left /= 2)
        for (int i = 0; i < left; i++)
            part[i] = neighbours_added(part[2 * i], part[2 * i + 1]);
    store(sums->out, part[0]);
    sums->out += LANES;
    sums->count = 0;
}

INLINE void push(Sums *sums, vec v)
{
    sums->part[sums->count++] = v;
    if (sums->count == LANES)
        flush(sums);
}

/* the first sums, as many as were pushed, are in place; what follows them in the last vector is arbitrary */
INLINE void finish(Sums *sums)
{
    if (sums->count)
        flush(sums);
}

/* -- rows ---------------------------------------------------------------------------------------------------------- */

INLINE void add_row(REAL *restrict sum, const REAL *restrict row, int64_t width)
{
    for (int64_t c = 0; c < width; c += LANES)
        store(sum + c, load(sum + c) + load(row + c));
}
