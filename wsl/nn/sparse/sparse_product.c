/* Rows first … last of the product of two sparse matrices, dense: out = X W^T with X [N, F] by rows, W by columns.

   What an entry X_ij costs is the number of weights that are left in column j, not the number of outputs. */

#include <stdint.h>
#include <string.h>

void sparse_product(int64_t first, int64_t last, int64_t outputs, const int64_t *row, const int64_t *column,
                    const REAL *value, const int64_t *start, const int32_t *output, const REAL *weight, REAL *out)
{
    for (int64_t i = first; i < last; i++) {
        REAL *restrict mine = out + i * outputs;
        memset(mine, 0, (size_t)outputs * sizeof *mine);
        for (int64_t e = row[i]; e < row[i + 1]; e++) {
            int64_t j = column[e];
            for (int64_t k = start[j]; k < start[j + 1]; k++)
                mine[output[k]] += value[e] * weight[k];
        }
    }
}
