// Few moves that earn their price: local search on one layer's layout.
//
// A layout is judged by the split that will be used on it: the slowest rank under water-filling, meant over rows of
// loads seen lately. What slows a row down is a closed set of ranks whose tokens can't leave it, and a good move gives
// one expert of that set a copy outside: copies connect ranks rather than level loads.
// Slots are numbered over all ranks; a slot holds an expert, EMPTY or ABSENT.

#include <time.h>

#include "rows.h"

#define MAX_TRIED 64
#define ROWS_TIMES_RANKS 2048
#define PAIRS 24  // (expert, rank) pairs looked at for a move

typedef struct {
    int slot, expert;
} change;

typedef struct {
    double promise;
    int count;
    change change[2];
} candidate;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// One row after a change of slots: shares of what left go to the other copies, then a few sweeps.
static void apply_row(const state *s, const candidate *c, const int *old, const double *load, double *time, double *share,
                      int sweeps) {
    for (int i = 0; i < c->count; i++) {
        int slot = c->change[i].slot;
        time[rank_of(s, slot)] -= share[slot] * pace_of(s, rank_of(s, slot));
        share[slot] = 0;
    }
    for (int i = 0; i < c->count; i++) {
        if (old[i] >= 0) pour(s, old[i], load[old[i]], time, share);
        pour(s, c->change[i].expert, load[c->change[i].expert], time, share);
    }
    for (int i = 0; i < sweeps; i++) sweep(s, load, time, share);
}

static void apply(state *s, const candidate *c, int *old) {
    for (int i = 0; i < c->count; i++) {
        old[i] = s->held[c->change[i].slot];
        put(s, c->change[i].slot, c->change[i].expert);
    }
}

static void undo(state *s, const candidate *c, const int *old) {
    for (int i = c->count - 1; i >= 0; i--) put(s, c->change[i].slot, old[i]);
}

// What one row gains by a change that is applied to the index already.
static double row_gain(const state *s, const candidate *c, const int *old, int w, int sweeps) {
    const problem *p = s->p;
    memcpy(s->try_time, s->time + w * p->ranks, sizeof(double) * p->ranks);
    memcpy(s->try_share, s->share + w * s->slots, sizeof(double) * s->slots);
    apply_row(s, c, old, p->load + w * p->experts, s->try_time, s->try_share, sweeps);
    return s->norm[w] - norm16(s->try_time, p);
}

// A first look at a change: on the mean of all rows (the last one) and on the row that is worst off.
static double scout(state *s, const candidate *c, int worst) {
    int old[2];
    apply(s, c, old);
    double gain = row_gain(s, c, old, s->p->rows - 1, 2) + 0.5 * row_gain(s, c, old, worst, 2);
    undo(s, c, old);
    return gain;
}

// Gain of a change, in slowest-rank tokens: the mean over the rows less `doubt` of its standard errors, since the best
// of many candidates on few rows looks better than it is. Gives up once it can't reach `wanted`.
static double gain_of(state *s, const candidate *c, double wanted, const double *hope) {
    int old[2];
    const problem *p = s->p;
    double gain = 0, squares = 0, used = 0, left = 0;
    for (int w = 0; w < p->rows; w++) left += hope[w];
    apply(s, c, old);
    for (int w = 0; w < p->rows - 1 && gain + left > wanted; w++) {
        double one = row_gain(s, c, old, w, 3);
        gain += p->weight[w] * one;
        squares += p->weight[w] * one * one;
        used += p->weight[w] * p->weight[w];
        left -= hope[w];
    }
    undo(s, c, old);
    if (gain + left <= wanted) return -1;
    double variance = squares - gain * gain;
    return gain - p->doubt * sqrt(variance > 0 ? variance * used : 0);
}

// Whether a copy of e on the rank would share a node with another while a node without one is left.
// besides: a slot of e that is about to be given up, or -1.
static int crowds(const state *s, int e, int rank, int besides) {
    const problem *p = s->p;
    if (!p->node || !p->spread) return 0;
    int beside = 0, free_node = 0;
    for (int r = 0; r < p->ranks && !free_node; r++) {
        int used = p->pace[r] <= 0;
        for (int c = 0; c < s->copies[e] && !used; c++) {
            int slot = s->where[e * p->ranks + c];
            used = slot != besides && p->node[rank_of(s, slot)] == p->node[r];
        }
        free_node = !used;
    }
    for (int c = 0; c < s->copies[e]; c++) {
        int slot = s->where[e * p->ranks + c];
        beside |= slot != besides && p->node[rank_of(s, slot)] == p->node[rank];
    }
    return beside && free_node;
}

// Whether e may lose its copy in `slot`: enough others remain, on enough nodes where copies go to different ones.
static int may_lose(const state *s, int e, int slot) {
    const problem *p = s->p;
    int least = p->min_copies > 1 ? p->min_copies : 1, at = rank_of(s, slot), nodes = 0, beside = 0;
    if (s->copies[e] <= least) return 0;
    if (least == 1 || !p->node || !p->spread) return 1;
    for (int c = 0; c < s->copies[e]; c++) {
        int r = rank_of(s, s->where[e * p->ranks + c]), seen = 0;
        beside |= r != at && p->node[r] == p->node[at];
        for (int b = 0; b < c && !seen; b++) seen = p->node[rank_of(s, s->where[e * p->ranks + b])] == p->node[r];
        nodes += !seen;
    }
    return beside || nodes > least;
}

// What a change must bring: every expert that comes to a rank is fetched, from its own node or from another.
static double price_of(const state *s, const candidate *c) {
    const problem *p = s->p;
    double price = 0;
    for (int i = 0; i < c->count; i++) {
        int e = c->change[i].expert, rank = rank_of(s, c->change[i].slot), near = !p->node;
        for (int k = 0; k < s->copies[e] && !near; k++)
            near = p->node[rank_of(s, s->where[e * p->ranks + k])] == p->node[rank];
        price += near ? p->price : p->far_price;
    }
    return price;
}

static void keep_best(candidate *best, int *count, int room, const candidate *one) {
    int i = *count;
    if (i == room) {
        if (best[room - 1].promise >= one->promise) return;
        i = room - 1;
    } else {
        (*count)++;
    }
    for (; i > 0 && best[i - 1].promise < one->promise; i--) best[i] = best[i - 1];
    best[i] = *one;
}

// promise[e, r]: about what a copy of e on r would bring, were its slot free, over all rows. First order: the flow
// that levels both sides, times how much the objective feels each.
static void promises(const state *s, double *promise) {
    const problem *p = s->p;
    int E = p->experts, R = p->ranks;
    int stride = 1 + p->rows * R / ROWS_TIMES_RANKS;  // with many ranks, fewer rows are looked at
    memset(promise, 0, sizeof(double) * E * R);
    for (int w = (p->rows - 1) % stride; w < p->rows; w += stride) {
        double weight = w == p->rows - 1 ? 1.0 / p->rows : p->weight[w] * stride;
        const double *time = s->time + w * R, *load = p->load + w * E;
        double feel[MAX_RANKS], size[MAX_RANKS];
        for (int r = 0; r < R; r++) {
            double t = time[r] / s->norm[w], t2 = t * t, t4 = t2 * t2, t8 = t4 * t4;
            feel[r] = weight * t8 * t4 * t2 * t / R;
            size[r] = 0;
            for (int q = 0; q < R; q++) size[r] += fabs(time[q] - time[r]) <= 2e-3 * time[r];
        }
        for (int e = 0; e < E; e++) {
            if (!s->copies[e]) continue;
            int from = rank_of(s, s->where[e * R]);
            for (int c = 1; c < s->copies[e]; c++) {
                int r = rank_of(s, s->where[e * R + c]);
                if (time[r] < time[from]) from = r;
            }
            for (int r = 0; r < R; r++) {
                double gap = time[from] - time[r];
                if (gap <= 0 || p->pace[r] <= 0) continue;
                double flow = gap / (p->pace[from] / size[from] + p->pace[r] / size[r]), half = 0.5;
                if (flow > load[e]) flow = load[e], half = 0.8;
                promise[e * R + r] += half * flow * (feel[from] * p->pace[from] - feel[r] * p->pace[r]);
            }
        }
    }
}

// Tokens that a slot's copy carries, over the rows.
static double carried(const state *s, int slot) {
    double sum = 0;
    for (int w = 0; w < s->p->rows; w++) sum += s->p->weight[w] * s->share[w * s->slots + slot];
    return sum;
}

static int list_candidates(state *s, const double *promise, int worst, candidate *best, int room) {
    const problem *p = s->p;
    int E = p->experts, R = p->ranks, S = p->slots_per_rank, count = 0, pairs = 0;
    candidate pair[PAIRS];
    for (int e = 0; e < E; e++)
        for (int r = 0; r < R; r++) {
            double v = promise[e * R + r];
            if (v <= p->price || (pairs == PAIRS && v <= pair[PAIRS - 1].promise)) continue;
            if (holds(s, e, r) || crowds(s, e, r, -1)) continue;
            keep_best(pair, &pairs, PAIRS, &(candidate){v, 1, {{r, e}, {0, 0}}});
        }
    for (int i = 0; i < pairs; i++) {
        int r = pair[i].change[0].slot, e = pair[i].change[0].expert;
        for (int slot = r * S; slot < r * S + S; slot++) {
            int f = s->held[slot];
            if (f == ABSENT) continue;
            if (f == EMPTY || may_lose(s, f, slot)) {
                candidate c = {0, 1, {{slot, e}, {0, 0}}};
                c.promise = scout(s, &c, worst) - price_of(s, &c);
                if (c.promise > 0) keep_best(best, &count, room, &c);
            }
            for (int k = 0; k < s->copies[e]; k++) {  // exchange the contents of two slots
                int from = s->where[e * R + k];
                if (f == EMPTY || holds(s, f, rank_of(s, from)) || crowds(s, f, rank_of(s, from), slot)) continue;
                if (carried(s, slot) >= carried(s, from)) continue;
                candidate c = {0, 2, {{slot, e}, {from, f}}};
                c.promise = scout(s, &c, worst) - price_of(s, &c);
                if (c.promise > 0) keep_best(best, &count, room, &c);
            }
        }
    }
    return count;
}

static int improve(state *s, int max_moves, int64_t until, double *promise, double *hope) {
    const problem *p = s->p;
    int moves = 0, room = p->tried < MAX_TRIED ? p->tried : MAX_TRIED;
    while (moves < max_moves) {
        int worst = 0;
        for (int w = 0; w < p->rows; w++) {
            double work = 0, speed = 0;
            for (int r = 0; r < p->ranks; r++)
                if (p->pace[r] > 0) work += s->time[w * p->ranks + r] / p->pace[r], speed += 1 / p->pace[r];
            hope[w] = p->weight[w] * (s->norm[w] - work / speed);
            if (hope[w] > hope[worst]) worst = w;
        }
        promises(s, promise);
        candidate list[MAX_TRIED];
        int count = list_candidates(s, promise, worst, list, room), best = -1;
        double best_gain = 0;
        for (int i = 0; i < count; i++) {
            if (moves + list[i].count > max_moves) continue;
            double price = price_of(s, &list[i]), gain = gain_of(s, &list[i], best_gain + price, hope) - price;
            if (gain > best_gain) best_gain = gain, best = i;
            if (now() > until) break;
        }
        if (best < 0) break;
        int old[2];
        apply(s, &list[best], old);
        for (int w = 0; w < p->rows; w++) {
            apply_row(s, &list[best], old, p->load + w * p->experts, s->time + w * p->ranks, s->share + w * s->slots, 2);
            settle(s, w, 12);
        }
        moves += list[best].count;
        if (now() > until) break;
    }
    return moves;
}

// Improve `held` [slots] in place. scores: [2] mean slowest rank before and after, in tokens. Returns the moves made,
// -1 without memory.
int tokenyard_improve(const problem *p, int16_t *held, double *scores) {
    int64_t until = now() + p->nanoseconds;
    state s;
    double *promise = malloc(sizeof(double) * p->experts * p->ranks), *hope = malloc(sizeof(double) * p->rows);
    if (!promise || !hope || !open_state(&s, p, held)) {
        free(promise), free(hope);
        return -1;
    }
    scores[0] = score(&s);
    int moves = improve(&s, p->max_moves, until, promise, hope);
    scores[1] = score(&s);
    close_state(&s);
    free(promise), free(hope);
    return moves;
}

// The rank times of every row under the split. time: [rows, ranks]. Returns 0, -1 without memory.
int tokenyard_times(const problem *p, int16_t *held, double *time) {
    state s;
    if (!open_state(&s, p, held)) return -1;
    memcpy(time, s.time, sizeof(double) * p->rows * p->ranks);
    close_state(&s);
    return 0;
}

