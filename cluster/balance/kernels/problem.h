// What the planner's loops work on: one layer's loads, ranks and price, and the division of tokens that they plan for.

#ifndef TOKENYARD_PROBLEM_H
#define TOKENYARD_PROBLEM_H

#include <stdint.h>
#include <string.h>

#define EMPTY (-1)
#define ABSENT (-2)
#define MAX_RANKS 1024

typedef struct {
    int32_t experts, ranks, slots_per_rank, rows;
    const double *load;     // [rows, experts] tokens; the last row is the mean of the others, with weight 0
    const double *weight;   // [rows], adding up to 1
    const double *pace;     // [ranks] 1 / relative speed; 0: a dead rank
    const int32_t *node;    // [ranks], or NULL where all share one
    double price;           // tokens of the slowest rank that a move must bring
    double far_price;       // the same, where no rank of the node holds the expert
    double doubt;           // standard errors that are taken off a gain first
    int32_t max_moves;
    int32_t tried;          // candidates solved in full for a move
    int32_t spread;         // copies of an expert go to different nodes first
    int32_t min_copies;     // that every expert keeps, on as many ranks
    int64_t nanoseconds;    // stop looking for moves after this
} problem;

// Fill `width` ranks with n tokens up to one level. time: of all ranks, without these tokens.
static inline void pour_level(double *time, const uint16_t *rank, int width, const double *pace, double n,
                              double *share) {
    if (width == 2) {  // the common case
        double a = time[rank[0]], b = time[rank[1]];
        double pa = pace[rank[0]], pb = pace[rank[1]], first = (n * pb + b - a) / (pa + pb);
        first = first < 0 ? 0 : first > n ? n : first;
        share[0] = first;
        share[1] = n - first;
        time[rank[0]] = a + first * pa;
        time[rank[1]] = b + (n - first) * pb;
        return;
    }
    int order[MAX_RANKS];
    for (int i = 0; i < width; i++) {
        int j = i;
        double t = time[rank[i]];
        for (; j > 0 && time[rank[order[j - 1]]] > t; j--) order[j] = order[j - 1];
        order[j] = i;
    }
    double rate = 0, filled = 0, level = 0;  // level solves: sum over used of (level - time) / pace = n
    int used = 0;
    while (used < width) {
        int r = rank[order[used]];
        double speed = 1 / pace[r];
        rate += speed;
        filled += time[r] * speed;
        used++;
        level = (n + filled) / rate;
        if (used == width || level <= time[rank[order[used]]]) break;
    }
    for (int i = 0; i < width; i++) share[i] = 0;
    for (int i = 0; i < used; i++) {
        int r = rank[order[i]];
        double up = level - time[r];
        if (up < 0) up = 0;
        share[order[i]] = up / pace[r];
        time[r] = level > time[r] ? level : time[r];
    }
}

static inline double slowest_of(const double *time, int ranks) {
    double most = 0;
    for (int r = 0; r < ranks; r++)
        if (time[r] > most) most = time[r];
    return most;
}

#endif
