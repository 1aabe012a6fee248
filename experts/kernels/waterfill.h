// Water-filling: divide the tokens of replicated experts over the ranks that hold copies, so that the slowest rank
// ends as early as it can. Plain C, shared by the split of every step and by the planner that places for that split.
//
// The reachable rank loads form a base polytope, so the point of least squares is also the min-max point, and pouring
// one expert at a time (take its tokens out, fill its ranks up to one level) converges to it. A closed set of ranks,
// reached from the slowest one through experts with tokens there, proves how near the point is: what lies on the set
// can't leave it.
//
// Time of a rank = sum of max(tokens, floor) over its slots in use, times its pace (1 / relative speed). floor is the
// time of reading a slot's weights, in tokens: with few tokens a second copy in use costs more than it levels.
// Ranks are named by uint16; at most WF_RANKS of them.

#ifndef TOKENYARD_WATERFILL_H
#define TOKENYARD_WATERFILL_H

#include <stdint.h>
#include <string.h>

#define WF_RANKS 1024
#define WF_WORDS (WF_RANKS / 64)
#define WF_NEVER_SLOWER 1e30

// Replicated experts only. Copies of the i-th are at [start[i], start[i + 1]) of rank.
typedef struct {
    int count;
    int ranks;
    const int32_t *start;
    const uint16_t *rank;
    const double *pace;  // [ranks], or NULL: all 1
    double floor;        // tokens
} wf_graph;

static inline double wf_slot(double tokens, double floor) {
    return tokens <= 0 ? 0 : tokens > floor ? tokens : floor;
}

// Fill `width` ranks with n tokens up to one level. time: of all ranks, without these tokens. floor 0.
static inline void wf_pour(double *time, const uint16_t *rank, int width, const double *pace, double n, double *share) {
    if (width == 2) {
        double a = time[rank[0]], b = time[rank[1]];
        double pa = pace ? pace[rank[0]] : 1, pb = pace ? pace[rank[1]] : 1;
        double first = pace ? (n * pb + b - a) / (pa + pb) : 0.5 * (n + b - a);
        first = first < 0 ? 0 : first > n ? n : first;
        share[0] = first;
        share[1] = n - first;
        time[rank[0]] = a + first * pa;
        time[rank[1]] = b + (n - first) * pb;
        return;
    }
    int order[WF_RANKS];
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
        double speed = pace ? 1 / pace[r] : 1;
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
        share[order[i]] = pace ? up / pace[r] : up;
        time[r] = level > time[r] ? level : time[r];
    }
}

// The same where a slot in use costs at least `floor`: as many of the least busy ranks as give the least sum of
// squared times, which weighs a level against the extra work of reading one more copy.
static inline void wf_pour_floor(double *time, const uint16_t *rank, int width, const double *pace, double floor,
                                 double n, double *share) {
    int order[WF_RANKS];
    for (int i = 0; i < width; i++) {
        int j = i;
        double t = time[rank[i]] + (pace ? pace[rank[i]] : 1) * floor;
        for (; j > 0; j--) {
            int o = order[j - 1];
            if (time[rank[o]] + (pace ? pace[rank[o]] : 1) * floor <= t) break;
            order[j] = o;
        }
        order[j] = i;
    }
    double best = 0, best_level = 0, rate = 0, filled = 0;
    int best_used = 0;
    for (int used = 1; used <= width; used++) {
        int r = rank[order[used - 1]];
        double speed = pace ? 1 / pace[r] : 1;
        rate += speed;
        filled += time[r] * speed;
        double level = (n + filled) / rate, change = 0;
        if (used > 1 && level <= time[r]) break;
        for (int i = 0; i < used; i++) {
            int q = rank[order[i]];
            double p = pace ? pace[q] : 1, up = (level - time[q]) / p;
            double t = time[q] + p * wf_slot(up, floor);
            change += t * t - time[q] * time[q];
        }
        if (best_used == 0 || change < best) best = change, best_used = used, best_level = level;
    }
    for (int i = 0; i < width; i++) share[i] = 0;
    for (int i = 0; i < best_used; i++) {
        int r = rank[order[i]];
        double p = pace ? pace[r] : 1, up = (best_level - time[r]) / p;
        if (up < 0) up = 0;
        share[order[i]] = up;
        time[r] += p * wf_slot(up, floor);
    }
}

static inline void wf_take(const wf_graph *g, int i, double *time, const double *share) {
    for (int k = g->start[i]; k < g->start[i + 1]; k++)
        time[g->rank[k]] -= (g->pace ? g->pace[g->rank[k]] : 1) * wf_slot(share[k], g->floor);
}

// Pour every expert once, taking out first what it has. count: [graph.count] tokens; share: [copies].
static inline void wf_sweep(const wf_graph *g, const double *count, double *time, double *share) {
    for (int i = 0; i < g->count; i++) {
        int at = g->start[i], width = g->start[i + 1] - at;
        if (count[i] <= 0) continue;
        wf_take(g, i, time, share + 0);
        if (g->floor > 0)
            wf_pour_floor(time, g->rank + at, width, g->pace, g->floor, count[i], share + at);
        else
            wf_pour(time, g->rank + at, width, g->pace, count[i], share + at);
    }
}

static inline double wf_slowest(const double *time, int ranks) {
    double most = 0;
    for (int r = 0; r < ranks; r++)
        if (time[r] > most) most = time[r];
    return most;
}

// The ranks among which the slowest one's tokens can still be divided, as a bit set; returns the least time that any
// division gives (exact for floor 0). near: ranks within this of the slowest belong to the set from the start.
static inline double wf_bound(const wf_graph *g, const double *time, const double *share, double near, uint64_t *set) {
    int words = (g->ranks + 63) / 64, grew = 1;
    double most = wf_slowest(time, g->ranks);
    memset(set, 0, (size_t)words * 8);
    for (int r = 0; r < g->ranks; r++)
        if (time[r] >= most - near) set[r >> 6] |= 1ull << (r & 63);
    while (grew) {
        grew = 0;
        for (int i = 0; i < g->count; i++) {
            int inside = 0, outside = 0;
            for (int k = g->start[i]; k < g->start[i + 1]; k++) {
                int r = g->rank[k], in = (set[r >> 6] >> (r & 63)) & 1;
                inside |= in && share[k] > 1e-9;
                outside |= !in;
            }
            if (!inside || !outside) continue;
            for (int k = g->start[i]; k < g->start[i + 1]; k++) set[g->rank[k] >> 6] |= 1ull << (g->rank[k] & 63);
            grew = 1;
        }
    }
    double work = 0, speed = 0;
    for (int r = 0; r < g->ranks; r++)
        if ((set[r >> 6] >> (r & 63)) & 1) {
            double p = g->pace ? g->pace[r] : 1;
            work += time[r] / p;
            speed += 1 / p;
        }
    return work / speed;
}

// Sweep until the slowest rank is within `slack` of the least possible, or `sweeps` are done. Returns its time.
static inline double wf_solve(const wf_graph *g, const double *count, double *time, double *share, int sweeps,
                              double slack) {
    uint64_t set[WF_WORDS];
    double most = wf_slowest(time, g->ranks);
    for (int done = 0; done < sweeps;) {
        double before = most;
        for (int i = 0; i < 2 && done < sweeps; i++, done++) wf_sweep(g, count, time, share);
        most = wf_slowest(time, g->ranks);
        if (g->count <= 1 || (g->floor > 0 && done > 2 && before - most < 1e-9)) break;
        if (g->floor <= 0 && most - wf_bound(g, time, share, 0, set) <= slack) break;
    }
    return most;
}

#endif
