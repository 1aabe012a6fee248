// Counts the tokens of one layer by source and slot.

#include <stddef.h>
#include <stdint.h>

// counts: [members, width] of which the last column is "none". slots: [N, K], -1 = none. rows: [members] how many of the N
// are whose, in order.
void tokenyard_count_loads(const int32_t *slots, const int32_t *rows, int32_t members, int32_t top_k, int32_t width,
                           int64_t *counts) {
    for (int32_t m = 0; m < members; m++, counts += width)
        for (size_t pair = (size_t)rows[m] * top_k; pair > 0; pair--, slots++)
            counts[*slots < 0 ? width - 1 : *slots]++;
}
