// A layout with every row of loads divided over it: what the search changes slot by slot.

#ifndef TOKENYARD_ROWS_H
#define TOKENYARD_ROWS_H

#include <math.h>
#include <stdlib.h>

#include "problem.h"

typedef struct {
    const problem *p;
    int slots;
    int16_t *held;      // [slots]
    int *copies;        // [experts]
    int *where;         // [experts, ranks] slots of each expert
    int *replicated;    // [experts] experts with several copies
    int replicated_count;
    double *time;       // [rows, ranks]
    double *share;      // [rows, slots]
    double *slowest;    // [rows]
    double *norm;       // [rows] 16-norm of the rank times
    double *try_time;   // [ranks]
    double *try_share;  // [slots]
} state;

static inline int rank_of(const state *s, int slot) { return slot / s->p->slots_per_rank; }
static inline double pace_of(const state *s, int rank) { return s->p->pace[rank]; }

static inline int holds(const state *s, int e, int rank) {
    for (int c = 0; c < s->copies[e]; c++)
        if (rank_of(s, s->where[e * s->p->ranks + c]) == rank) return 1;
    return 0;
}

// A second copy on a rank levels nothing: its slot counts as empty.
static inline void index_copies(state *s) {
    memset(s->copies, 0, sizeof(int) * s->p->experts);
    for (int k = 0; k < s->slots; k++) {
        int e = s->held[k], rank = rank_of(s, k);
        if (e < 0 || pace_of(s, rank) <= 0) continue;
        if (holds(s, e, rank))
            s->held[k] = EMPTY;
        else
            s->where[e * s->p->ranks + s->copies[e]++] = k;
    }
    s->replicated_count = 0;
    for (int e = 0; e < s->p->experts; e++)
        if (s->copies[e] > 1) s->replicated[s->replicated_count++] = e;
}

static inline void pour(const state *s, int e, double n, double *time, double *share) {
    const int *slot = s->where + e * s->p->ranks;
    int width = s->copies[e];
    uint16_t rank[MAX_RANKS];
    double part[MAX_RANKS];
    for (int i = 0; i < width; i++) {
        rank[i] = (uint16_t)rank_of(s, slot[i]);
        time[rank[i]] -= share[slot[i]] * pace_of(s, rank[i]);
    }
    pour_level(time, rank, width, s->p->pace, n, part);
    for (int i = 0; i < width; i++) share[slot[i]] = part[i];
}

static inline void sweep(const state *s, const double *load, double *time, double *share) {
    for (int i = 0; i < s->replicated_count; i++) pour(s, s->replicated[i], load[s->replicated[i]], time, share);
}

// The time below which no division gets the slowest rank: its tokens can't leave the closed set of ranks around it.
static inline double least_possible(const state *s, const double *time, const double *share) {
    int grew = 1, ranks = s->p->ranks;
    double most = slowest_of(time, ranks);
    uint8_t in[MAX_RANKS];
    for (int r = 0; r < ranks; r++) in[r] = time[r] >= most * (1 - 1e-4);
    while (grew) {
        grew = 0;
        for (int i = 0; i < s->replicated_count; i++) {
            int e = s->replicated[i], inside = 0, outside = 0;
            const int *slot = s->where + e * ranks;
            for (int c = 0; c < s->copies[e]; c++) {
                int r = rank_of(s, slot[c]);
                inside |= in[r] && share[slot[c]] > 1e-6;
                outside |= !in[r];
            }
            if (!inside || !outside) continue;
            for (int c = 0; c < s->copies[e]; c++) in[rank_of(s, slot[c])] = 1;
            grew = 1;
        }
    }
    double work = 0, speed = 0;
    for (int r = 0; r < ranks; r++)
        if (in[r]) {
            work += time[r] / pace_of(s, r);
            speed += 1 / pace_of(s, r);
        }
    return work / speed;
}

// What the search lowers: the 16-norm of the rank times, near the slowest one, but it also sees the second slowest, so
// that moves which pay only together are found one by one.
static inline double norm16(const double *time, const problem *p) {
    double most = slowest_of(time, p->ranks), sum = 0, alive = 0;
    if (most <= 0) return 0;
    for (int r = 0; r < p->ranks; r++) {
        double t = time[r] / most;
        t *= t, t *= t, t *= t, t *= t;
        sum += t;
        alive += p->pace[r] > 0;
    }
    return most * sqrt(sqrt(sqrt(sqrt(sum / alive))));
}

static inline void settle(const state *s, int row, int sweeps) {
    double *time = s->time + row * s->p->ranks, *share = s->share + row * s->slots;
    const double *load = s->p->load + row * s->p->experts;
    for (int done = 0; done < sweeps; done += 2) {
        sweep(s, load, time, share);
        sweep(s, load, time, share);
        s->slowest[row] = slowest_of(time, s->p->ranks);
        s->norm[row] = norm16(time, s->p);
        if (s->slowest[row] - least_possible(s, time, share) < 2e-3 * s->slowest[row]) break;
    }
}

// Time and shares of a row from nothing.
static inline void start_row(const state *s, int row) {
    double *time = s->time + row * s->p->ranks, *share = s->share + row * s->slots;
    const double *load = s->p->load + row * s->p->experts;
    memset(time, 0, sizeof(double) * s->p->ranks);
    memset(share, 0, sizeof(double) * s->slots);
    for (int e = 0; e < s->p->experts; e++)
        if (s->copies[e] == 1) {
            int slot = s->where[e * s->p->ranks];
            share[slot] = load[e];
            time[rank_of(s, slot)] += load[e] * pace_of(s, rank_of(s, slot));
        }
    settle(s, row, 24);
}

static inline double score(const state *s) {
    double sum = 0;
    for (int w = 0; w < s->p->rows; w++) sum += s->p->weight[w] * s->slowest[w];
    return sum;
}

static inline void drop_copy(state *s, int e, int slot) {
    int *list = s->where + e * s->p->ranks, n = s->copies[e], i = 0;
    while (list[i] != slot) i++;
    list[i] = list[n - 1];
    s->copies[e] = n - 1;
    if (n - 1 == 1)
        for (int j = 0; j < s->replicated_count; j++)
            if (s->replicated[j] == e) {
                s->replicated[j] = s->replicated[--s->replicated_count];
                break;
            }
}

static inline void add_copy(state *s, int e, int slot) {
    s->where[e * s->p->ranks + s->copies[e]++] = slot;
    if (s->copies[e] == 2) s->replicated[s->replicated_count++] = e;
}

static inline void put(state *s, int slot, int expert) {
    int old = s->held[slot];
    s->held[slot] = (int16_t)expert;
    if (expert >= 0) add_copy(s, expert, slot);
    if (old >= 0) drop_copy(s, old, slot);
}

static inline void close_state(state *s) {
    free(s->copies), free(s->where), free(s->replicated), free(s->time), free(s->share), free(s->slowest);
    free(s->norm), free(s->try_time), free(s->try_share);
}

// Every row solved on a layout; 0 without memory.
static inline int open_state(state *s, const problem *p, int16_t *held) {
    int E = p->experts, R = p->ranks, W = p->rows, slots = R * p->slots_per_rank;
    *s = (state){.p = p, .slots = slots, .held = held};
    s->copies = malloc(sizeof(int) * E);
    s->where = malloc(sizeof(int) * E * R);
    s->replicated = malloc(sizeof(int) * E);
    s->time = malloc(sizeof(double) * W * R);
    s->share = malloc(sizeof(double) * W * slots);
    s->slowest = malloc(sizeof(double) * W);
    s->norm = malloc(sizeof(double) * W);
    s->try_time = malloc(sizeof(double) * R);
    s->try_share = malloc(sizeof(double) * slots);
    if (!s->copies || !s->where || !s->replicated || !s->time || !s->share || !s->slowest || !s->norm ||
        !s->try_time || !s->try_share) {
        close_state(s);
        return 0;
    }
    index_copies(s);
    for (int w = 0; w < W; w++) start_row(s, w);
    return 1;
}

#endif
