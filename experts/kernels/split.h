// The split of one layer, as other kernels call it. See split.c.

#ifndef TOKENYARD_SPLIT_H
#define TOKENYARD_SPLIT_H

#include <stdint.h>

// Copies of the i-th replicated expert are at [start[i], start[i + 1]) of rank and slot. Experts are shifted by one:
// row 0 of lookup and home stands for "none".
typedef struct {
    int32_t experts, ranks, replicated, even;  // even: all speeds are NORMAL
    const int32_t *lookup;                     // [experts + 1] first slot
    const int32_t *home;                       // [experts + 1] rank of the first slot
    const int32_t *expert;                     // [replicated] shifted by one
    const int32_t *start;                      // [replicated + 1]
    const int32_t *rank;                       // [copies]
    const int32_t *slot;                       // [copies]
    const int64_t *speed;                      // [ranks]
    int64_t floor;                             // tokens x UNIT
    int64_t slack;                             // stop when the slowest rank is within 1 / slack of the least possible
    int32_t sweeps;                            // or after so many
} split_table;

void tokenyard_split(const split_table *t, const int16_t *ids, int64_t pairs, int turn, int32_t *slots);

#endif
