/* Pruned propagation of node features: out = sum_l theta_l T^l x, many hops, one block of channels after the other.

   A block of LANES channels is carried through all hops while it lies in the cache. With q = D^1/2 z and
   T = D^-1/2 (A + I) D^-1/2 a hop is z <- D^-1 (A + I) z, so what an edge costs is one addition of a vector, without
   a weight. Messages of a block are kept or pruned together, by the norm over its channels: T_uv |q_v| is |z_v| / sqrt
   of d_u, so v reaches the receivers whose degree is below a number, and as its edges ascend by that degree, those that
   are left are a prefix. Pruned edges do not come back in later hops of the block: a hop stores the length of the
   prefix and the degree at its end, so that a visit looks at no edge that is not used. Counters have 64 bits.

   Compiled for REAL = float and double by propagation.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#define LANES 16
#define TINY_IS_ZERO 0x8040 /* of the processor's control word: numbers below 1e-38 cost a hundred cycles each */

typedef REAL vec __attribute__((vector_size(LANES * sizeof(REAL)), aligned(64)));
typedef REAL four __attribute__((vector_size(4 * sizeof(REAL))));

/* A node of a block: 1 / degree, the edges left, the greatest degree of their receivers. */
struct node {
    REAL inverse, greatest;
    int64_t left;
};

static inline REAL squared(vec q)
{
    four part[LANES / 4], sum = {0};
    q *= q;
    memcpy(part, &q, sizeof part);
    for (int k = 0; k < LANES / 4; k++)
        sum += part[k];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* reach: (rest / limit)^2, or 0 if nothing is pruned */
static int64_t hop(int64_t nodes, const int64_t *pointer, const int32_t *target, const REAL *degree, struct node *node,
                   const vec *z, vec *restrict next, vec *restrict sum, REAL theta, REAL rest, REAL reach)
{
    int64_t used = 0;
    for (int64_t v = 0; v < nodes; v++) {
        const vec own = z[v] * node[v].inverse;
        const REAL size = squared(own);
        if (size == 0)
            continue;
        const int32_t *to = target + pointer[v];
        int64_t count = node[v].left;
        REAL share = theta;
        if (reach > 0) {
            const REAL beyond = size * reach;
            if (count && node[v].greatest >= beyond) {
                do
                    count--;
                while (count && degree[to[count - 1]] >= beyond);
                if (count == 0) { /* it sends nothing: all that it has left stays with it */
                    sum[v] += rest * own;
                    continue;
                }
                node[v].left = count;
                node[v].greatest = degree[to[count - 1]];
            }
            const REAL all = (REAL)(pointer[v + 1] - pointer[v]);
            share += (rest - theta) * (all - (REAL)count) / (all + 1); /* so does what pruned edges would carry */
        }
        used += count;
        sum[v] += share * own;
        next[v] += own;
        for (int64_t e = 0; e < count; e++)
            next[to[e]] += own;
    }
    return used;
}

/* The block of x that begins at a channel, as z times degree; returns the sum of its norms. */
static double gather(int64_t nodes, const int64_t *pointer, const int32_t *target, const REAL *degree,
                     const int64_t *place, const REAL *x, int64_t stride, int width, struct node *node, vec *z)
{
    double norms = 0;
    memset(z, 0, (size_t)nodes * sizeof *z);
    for (int64_t v = 0; v < nodes; v++) {
        int64_t left = pointer[v + 1] - pointer[v];
        node[v] = (struct node){1 / degree[v], left ? degree[target[pointer[v + 1] - 1]] : 0, left};
        memcpy(z + v, x + place[v] * stride, (size_t)width * sizeof(REAL));
        norms += ROOT(squared(z[v]));
        z[v] *= (REAL)ROOT(degree[v]);
    }
    return norms;
}

/* Channels first … last of x [nodes, features] into out; 0, or 1 if there is no memory.

   pointer [nodes + 1], target: edges by source, receivers of least degree first. degree [nodes]: with the loop, which
   is never pruned. place [nodes]: the row of x that a node is. theta [hops + 1]; rest[l] = theta_l + … + theta_hops.
   threshold: in units of the mean norm of a node's block if relative, else of one channel. updates: (edge, channel)
   pairs used, loops not counted. */
int propagate(int64_t nodes, const int64_t *pointer, const int32_t *target, const REAL *degree, const int64_t *place,
              const REAL *x, REAL *out, int64_t features, int64_t first, int64_t last, int hops, const double *theta,
              const double *rest, double threshold, int relative, int64_t *updates)
{
    size_t bytes = (size_t)nodes * sizeof(vec);
    vec *z = aligned_alloc(64, bytes), *next = aligned_alloc(64, bytes), *sum = aligned_alloc(64, bytes);
    struct node *node = malloc((size_t)nodes * sizeof *node);
    int failed = !z || !next || !sum || !node;
#ifdef __SSE__
    unsigned control = _mm_getcsr();
    _mm_setcsr(control | TINY_IS_ZERO);
#endif
    for (; !failed && first < last; first += LANES) {
        int width = last - first < LANES ? (int)(last - first) : LANES;
        double norms = gather(nodes, pointer, target, degree, place, x + first, features, width, node, z);
        double limit = relative ? threshold * norms / (double)nodes : threshold;
        memset(sum, 0, bytes);
        for (int l = 0; l < hops; l++) {
            double reach = limit > 0 ? rest[l] / limit : 0;
            memset(next, 0, bytes);
            *updates += width * hop(nodes, pointer, target, degree, node, z, next, sum, (REAL)theta[l], (REAL)rest[l],
                                    (REAL)(reach * reach));
            vec *swapped = z;
            z = next;
            next = swapped;
        }
        for (int64_t v = 0; v < nodes; v++) {
            vec whole = (sum[v] + (REAL)theta[hops] * node[v].inverse * z[v]) * (REAL)ROOT(degree[v]);
            memcpy(out + place[v] * features + first, &whole, (size_t)width * sizeof(REAL));
        }
    }
#ifdef __SSE__
    _mm_setcsr(control);
#endif
    free(z), free(next), free(sum), free(node);
    return failed;
}
