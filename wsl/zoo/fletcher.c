/* The three sums from which wsl/zoo/fletcher.py makes a Fletcher-32 checksum, in one pass over a chunk. */

#include <stdint.h>

/* Words whose sums of pairs, weighted by 0 to 255, fit 32 bits: 255 * 256 / 2 * 131070 < 2^32. */
#define RUN 256

/* out: sum of pairs, sum of k * pair[k], sum of high halves; pair = low half + high half of a 32-bit word. */
void fletcher_sums(const uint32_t *chunk, int64_t words, uint64_t *out) {
    uint64_t total = 0, weighted = 0, plain = 0;
    for (int64_t start = 0; start < words; start += RUN) {
        const uint32_t *run = chunk + start;
        uint32_t count = words - start < RUN ? (uint32_t)(words - start) : RUN;
        uint32_t pairs = 0, places = 0, highs = 0;
        for (uint32_t k = 0; k < count; k++) {
            uint32_t high = run[k] >> 16, pair = (run[k] & 0xFFFF) + high;
            pairs += pair;
            places += k * pair;
            highs += high;
        }
        total += pairs;
        weighted += places + (uint64_t)start * pairs;
        plain += highs;
    }
    out[0] = total;
    out[1] = weighted;
    out[2] = plain;
}
