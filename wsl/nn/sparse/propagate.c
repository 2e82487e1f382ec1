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

static REAL norm(const REAL *q)
{
    REAL sum = 0;
    for (int k = 0; k < LANES; k++)
        sum += q[k] * q[k];
    return (REAL)ROOT(sum);
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

static void gather(REAL *block, const REAL *x, int64_t nodes, int64_t features, int64_t first, int width)
{
    memset(block, 0, (size_t)nodes * LANES * sizeof(REAL));
    for (int64_t v = 0; v < nodes; v++)
        memcpy(block + v * LANES, x + v * features + first, (size_t)width * sizeof(REAL));
}

static void hop(int64_t nodes, const int64_t *pointer, const int32_t *target, const REAL *weight, const REAL *loop,
                const REAL *q, REAL *next, REAL *sum, int64_t *left, REAL theta, REAL rest, REAL limit, int64_t *used)
{
    for (int64_t v = 0; v < nodes; v++) {
        const REAL *own = q + v * LANES;
        REAL size = norm(own) * rest;
        if (size == 0)
            continue;
        const int64_t *start = pointer + v;
        int64_t count = limit > 0 ? passing(weight + *start, left[v], size, limit) : left[v];
        REAL *total = sum + v * LANES;
        if (count == 0 && start[1] > *start) { /* it sends nothing: all that it has left stays with it */
            for (int k = 0; k < LANES; k++)
                total[k] += rest * own[k];
            continue;
        }
        left[v] = count;
        *used += count;
        REAL *mine = next + v * LANES;
        for (int k = 0; k < LANES; k++) {
            total[k] += theta * own[k];
            mine[k] += loop[v] * own[k];
        }
        for (int64_t e = *start; e < *start + count; e++) {
            REAL *other = next + (int64_t)target[e] * LANES, factor = weight[e];
            for (int k = 0; k < LANES; k++)
                other[k] += factor * own[k];
        }
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
    size_t bytes = (size_t)nodes * LANES * sizeof(REAL);
    REAL *q = aligned_alloc(64, bytes + 64 - bytes % 64), *next = aligned_alloc(64, bytes + 64 - bytes % 64);
    REAL *sum = aligned_alloc(64, bytes + 64 - bytes % 64);
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
            mean += norm(q + v * LANES);
        }
        REAL limit = (REAL)(relative ? threshold * mean / nodes : threshold);
        for (int l = 0; l < hops; l++) {
            memset(next, 0, bytes);
            hop(nodes, pointer, target, weight, loop, q, next, sum, left, (REAL)theta[l], (REAL)rest[l], limit, &used);
            REAL *swapped = q;
            q = next;
            next = swapped;
        }
        for (int64_t v = 0; v < nodes; v++)
            for (int k = 0; k < width; k++)
                out[v * features + first + k] = sum[v * LANES + k] + (REAL)theta[hops] * q[v * LANES + k];
        *updates += used * width;
    }
    free(q), free(next), free(sum), free(left);
    return failed;
}
