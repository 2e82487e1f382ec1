/* Pruned propagation of node features: out = sum_l theta_l T^l x, many hops, one block of channels after the other.

   A block of LANES channels is carried through all hops while it lies in the cache: what a node sends is one vector,
   what an edge costs is one fused multiply-add of it. Messages of a block are kept or pruned together, by the norm
   over its channels, and pruned edges do not come back in later hops of the block: the edges of a source are in the
   order of their weights, so those that are left are a prefix, and a hop stores one number per node. Counters have
   64 bits.

   Compiled for REAL = float and double by propagation.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16

typedef REAL vec __attribute__((vector_size(LANES * sizeof(REAL)), aligned(64)));

static REAL norm(const vec *q)
{
    vec squares = *q * *q;
    REAL part[LANES];
    memcpy(part, &squares, sizeof part);
    for (int half = LANES / 2; half; half /= 2)
        for (int k = 0; k < half; k++)
            part[k] += part[k + half];
    return (REAL)ROOT(part[0]);
}

/* how many of the first `count` weights (descending) give weight * size > limit */
static int64_t passing(const REAL *weight, int64_t count, REAL size, REAL limit)
{
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (weight[middle] * size > limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void gather(vec *block, const REAL *x, int64_t nodes, int64_t features, int64_t first, int width)
{
    memset(block, 0, (size_t)nodes * sizeof *block);
    for (int64_t v = 0; v < nodes; v++)
        memcpy(block + v, x + v * features + first, (size_t)width * sizeof(REAL));
}

static void hop(int64_t nodes, const int64_t *pointer, const int32_t *target, const REAL *weight, const REAL *loop,
                const vec *q, vec *restrict next, vec *restrict sum, int64_t *left, REAL theta, REAL rest, REAL limit,
                int64_t *used)
{
    for (int64_t v = 0; v < nodes; v++) {
        const vec own = q[v];
        REAL size = norm(q + v) * rest;
        if (size == 0)
            continue;
        int64_t first = pointer[v], count = left[v];
        if (limit > 0)
            count = passing(weight + first, count, size, limit);
        if (count == 0 && pointer[v + 1] > first) { /* it sends nothing: all that it has left stays with it */
            sum[v] += rest * own;
            continue;
        }
        left[v] = count;
        *used += count;
        sum[v] += theta * own;
        next[v] += loop[v] * own;
        for (int64_t e = first; e < first + count; e++)
            next[target[e]] += weight[e] * own;
    }
}

/* Channels first … last of x [nodes, features] into out; 0, or 1 if there is no memory.

   pointer [nodes + 1], target, weight: edges by source, weights descending within each. loop [nodes]: weights of self
   loops, which are never pruned. theta [hops + 1]; rest[l] = theta_l + … + theta_hops. threshold: in units of the mean
   norm of a node's block if relative, else of one channel. updates: (edge, channel) pairs used, loops not counted. */
int propagate(int64_t nodes, const int64_t *pointer, const int32_t *target, const REAL *weight, const REAL *loop,
              const REAL *x, REAL *out, int64_t features, int64_t first, int64_t last, int hops, const double *theta,
              const double *rest, double threshold, int relative, int64_t *updates)
{
    size_t bytes = (size_t)nodes * sizeof(vec);
    vec *q = aligned_alloc(64, bytes), *next = aligned_alloc(64, bytes), *sum = aligned_alloc(64, bytes);
    int64_t *left = malloc((size_t)nodes * sizeof *left);
    int failed = !q || !next || !sum || !left;
    for (; !failed && first < last; first += LANES) {
        int width = last - first < LANES ? (int)(last - first) : LANES;
        int64_t used = 0;
        gather(q, x, nodes, features, first, width);
        memset(sum, 0, bytes);
        double mean = 0;
        for (int64_t v = 0; v < nodes; v++) {
            left[v] = pointer[v + 1] - pointer[v];
            mean += norm(q + v);
        }
        REAL limit = (REAL)(relative ? threshold * mean / nodes : threshold);
        for (int l = 0; l < hops; l++) {
            memset(next, 0, bytes);
            hop(nodes, pointer, target, weight, loop, q, next, sum, left, (REAL)theta[l], (REAL)rest[l], limit, &used);
            vec *swapped = q;
            q = next;
            next = swapped;
        }
        for (int64_t v = 0; v < nodes; v++) {
            vec whole = sum[v] + (REAL)theta[hops] * q[v];
            memcpy(out + v * features + first, &whole, (size_t)width * sizeof(REAL));
        }
        *updates += used * width;
    }
    free(q), free(next), free(sum), free(left);
    return failed;
}
